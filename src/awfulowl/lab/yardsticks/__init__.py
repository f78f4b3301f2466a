"""What an attack is read against: floors, standard lines, naive possession, and the rules of the verdict."""

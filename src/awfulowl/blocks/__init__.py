"""Cut weight matrices into blocks and join them again; say which modules can be cut, and how."""

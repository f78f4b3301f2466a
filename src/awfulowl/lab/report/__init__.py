"""What an audit says: numbers for programs, a page for people, figures for both."""

"""Several datasets become one, by reference."""

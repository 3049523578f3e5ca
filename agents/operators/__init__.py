"""The operators that come with redistill."""

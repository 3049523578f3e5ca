"""The judges that come with redistill."""

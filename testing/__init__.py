"""Fakes, tiny models and conformance tests, for the tests of users and our own."""

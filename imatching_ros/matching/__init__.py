"""Feature matchers behind one protocol; see `base`."""

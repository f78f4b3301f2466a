"""Reference models and data sets, and the table that turns a MODEL argument into a model with an example."""

"""Training of dual encoders: the scripts that make the models this project ships."""

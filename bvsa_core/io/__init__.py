"""Reading files from elsewhere without trusting them, and writing our own atomically."""

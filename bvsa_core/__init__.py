"""Brain-to-image retrieval with blur-aligned image features, built on fovblur."""

"""The estimator: recordings in memory, scikit-learn's manners, and the Hugging Face Hub."""

"""The paper and its field as pure tensor functions: no files, no transformers."""

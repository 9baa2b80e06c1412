"""Files: preference pairs and labels in all their formats, models in Hugging Face layout, and writing that is whole
or not there."""

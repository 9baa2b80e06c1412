"""Files: preference pairs and labels in all their formats, models in Hugging Face layout, and safe writing."""

"""The stages of the series. Each trainer is configured in one function here, and the notebooks show that function."""

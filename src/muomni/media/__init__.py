"""Files to float arrays and back: sound, spectra, pictures, text. Takes paths, gives numpy or torch; imports
only errors and files."""

"""Files to float arrays and back: sound, spectra, pictures, text. Takes paths and bytes, gives numpy or torch; imports only errors, files."""

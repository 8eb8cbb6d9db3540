"""The vocabulary all parts share: manifest, messages, sketches, errors. msgspec and the standard library, no IO."""

//! Text to tokens and back: encoding, chat templates, incremental detokenizer.

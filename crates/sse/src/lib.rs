//! The text/event-stream format: an encoder and an incremental parser.

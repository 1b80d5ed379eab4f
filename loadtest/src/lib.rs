//! A client and a checker for event streams.

//! All Redis knowledge.

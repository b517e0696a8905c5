//! Decisions, one pure function per file.

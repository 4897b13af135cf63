//! Runnable examples of graceful degradation.

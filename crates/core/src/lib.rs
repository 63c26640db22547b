//! The vocabulary of stallfree: requests, batches, outputs, and the traits where the two towers meet.

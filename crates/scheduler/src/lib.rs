//! Who runs next: the Scheduler trait, its policies, the registry.

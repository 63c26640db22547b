//! `stallfree models`: what can be served, and what is here already.

use std::io;

use stallfree_models::ARCHITECTURES;

use crate::console::print;
use crate::download::hub_cache;
use crate::environment::Environment;
use crate::model_source::default_gguf;

/// Prints the supported architectures and the models cached on this machine.
pub(crate) fn print_all(environment: &Environment) -> io::Result<()> {
    print("Architectures:\n")?;
    for architecture in ARCHITECTURES {
        print(format_args!("  {}\n", architecture.names.join(", ")))?;
    }
    print("Models on this machine:\n")?;
    let mut found = hub_cache::models(&environment.hub);
    let packaged = default_gguf(environment);
    if packaged.is_file() {
        found.push(("SmolLM2-135M-Instruct".to_owned(), packaged));
    }
    if found.is_empty() {
        print("  none\n")?;
    }
    for (name, path) in found {
        print(format_args!("  {name}  {}\n", path.display()))?;
    }
    Ok(())
}

//! What can be said of the CUDA kernels without a compiler; `cargo xtask kernels` compiles them.

use std::collections::BTreeSet;
use std::path::Path;

use stallfree_device::Dtype;
use stallfree_kernels::cuda::builds;

#[test]
fn every_source_is_among_the_builds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".cu"))
        .collect();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let built: BTreeSet<String> =
            builds(dtype).unwrap().iter().map(|build| build.source.name.to_owned()).collect();
        assert_eq!(built, files, "{dtype:?}");
    }
}

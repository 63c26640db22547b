//! NVIDIA's wheels of CUDA's libraries.

use anyhow::{Context as _, Result};
use stallfree_device::Library;

use crate::download::Pinned;
use crate::download::wheel::{self, Wheel};
use crate::environment::Environment;

/// Returns the wheel that holds a library: of CUDA 13.0, whose kernels every driver from 580 on runs.
pub(super) const fn wheel(library: Library) -> Wheel {
    match library {
        Library::Nvrtc => Wheel {
            package: Pinned {
                made_for: None,
                requirement: "nvidia-cuda-nvrtc==13.0.88",
                sha256: &[
                    "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575", // x86_64
                    "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b", // aarch64
                ],
            },
            files: &["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"],
        },
        Library::CublasLt => Wheel {
            package: Pinned {
                made_for: None,
                requirement: "nvidia-cublas==13.0.2.14",
                sha256: &[
                    "0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c",
                    "17165c296de689662b96e0ef4f21dfbff3092ff00d0e3e59470f5acb08c0f87d",
                ],
            },
            files: &["libcublasLt.so.13"],
        },
        Library::Nccl => Wheel {
            package: Pinned {
                made_for: None,
                requirement: "nvidia-nccl-cu13==2.28.9",
                sha256: &[
                    "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
                    "01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643",
                ],
            },
            files: &["libnccl.so.2"],
        },
    }
}

/// NIXL, of which only the C API is used: it is the same for every version of Python.
const NIXL: Pinned = Pinned {
    requirement: "nixl-cu13==1.5.1",
    sha256: &[
        "ce48b601bad4c4503a5d9d418e6f4b1289a3a68e407af99f0f7e377f8371f49b", // x86_64
        "dbccd0eacc919e8beeba036eb80a4eaa67b060c4d2c12d346797739397205369", // aarch64
    ],
    made_for: Some(("3.12", "manylinux_2_28")),
};

/// The folders of its wheel that hold the library, what it needs, and its plugins.
const NIXL_FOLDERS: &[&str] = &[".nixl_cu13.mesonpy.libs/", "nixl_cu13.libs/"];

/// Puts NIXL into the folder where it is looked for.
///
/// # Errors
/// As [`fetch`].
pub(super) fn fetch_nixl(environment: &Environment) -> Result<()> {
    wheel::fetch_tree(&NIXL, NIXL_FOLDERS, &environment.nixl(), &environment.path).with_context(|| {
        "NIXL could not be fetched; without an index, install it (PyPI: nixl-cu13) and put the folder of libnixl_capi.so on \
         LD_LIBRARY_PATH"
    })
}

/// Puts a library, which could not be opened, into the folder where the device layer looks for it.
///
/// # Errors
/// There is no pip, no index, or what came is not what was pinned.
pub(super) fn fetch(library: Library, environment: &Environment) -> Result<()> {
    let (wheel, folder) = (wheel(library), environment.libraries());
    for file in wheel.files {
        // What lies there is damaged; usually nothing does.
        let _removed = std::fs::remove_file(folder.join(file));
    }
    wheel::fetch(&wheel, &folder, &environment.path).with_context(|| {
        format!(
            "{} could not be fetched; without an index, install CUDA 13's {} and put its folder on LD_LIBRARY_PATH",
            library.name(),
            library.file()
        )
    })
}

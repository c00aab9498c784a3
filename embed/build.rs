//! Compiles the kernels of `src/gpu` to PTX, for builds with the feature `cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// PTX for the oldest GPUs that are served: newer ones compile it for themselves when it is
/// loaded, so one binary runs on all of them.
const OLDEST: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=src/gpu/kernels.cu");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = env::var_os("NVCC").map(PathBuf::from).unwrap_or_else(|| {
        let home = env::var_os("CUDA_HOME").map(PathBuf::from);
        let own = home.map(|home| home.join("bin/nvcc")).filter(|path| path.is_file());
        own.unwrap_or_else(|| PathBuf::from("nvcc"))
    });
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.ptx");
    let status = Command::new(&nvcc)
        .args(["--ptx", "-O3", &format!("-arch={OLDEST}"), "-o"])
        .arg(&out)
        .arg("src/gpu/kernels.cu")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} failed on src/gpu/kernels.cu: {status}", nvcc.display()),
        Err(error) => panic!(
            "{} cannot be started ({error}); the feature `cuda` needs nvcc on PATH, in CUDA_HOME/bin \
             or named by NVCC",
            nvcc.display()
        ),
    }
}

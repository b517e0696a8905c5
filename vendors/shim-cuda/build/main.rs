//! Compiles the libraries that tenants load, whatever this crate itself is compiled for: the
//! one that is loaded before others, and the drop-in that stands in the driver's place.
//!
//! The library stands on no standard library, ends on a panic and is always optimised: cargo
//! can say that of a whole workspace alone, so rustc is called here. The crate's own sources
//! are compiled twice: by cargo, to be checked and tested, and here, to be loaded.

mod surface;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

/// A tenant's process pays for every byte of it.
const LIBRARY_BYTES_MAX: usize = 1 << 20;

const LIBRARY: &str = "libaccelpool_cuda.so";

/// Where the drop-in lies, in a folder of its own: its name is the driver's.
const DROP_IN: &str = "drop-in/libcuda.so.1";

/// All that is linked of the C library; each is in glibc 2.17 too.
const LIBC_FUNCTIONS: [&str; 9] = [
    "__register_atfork",
    "bcmp",
    "clock_gettime",
    "dl_iterate_phdr",
    "getenv",
    "memcmp",
    "memcpy",
    "memset",
    "strlen",
];

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let shim = here.join("../shim/src");
    for source in [&shim, &here.join("src"), &here.join("surface"), &here.join("build")] {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    println!("cargo::rustc-check-cfg=cfg(accelpool_library, accelpool_drop_in)");

    let table = here.join("surface/functions.tsv");
    let table = fs::read_to_string(&table).expect("the table of functions can be read");
    let functions = surface::read(&table);
    fs::write(out.join("surface.rs"), surface::generate(&functions)).expect("OUT_DIR is ours");

    let base = out.join("libaccelpool_shim.rlib");
    let compiler = Compiler { out: &out };
    let in_library: [OsString; 2] = ["--cfg".into(), "accelpool_library".into()];
    compiler.run("accelpool_shim", "rlib", &shim.join("lib.rs"), &base, &in_library);
    let mut shared = in_library.to_vec();
    shared.extend(["--extern".into(), join("accelpool_shim=", &base)]);
    shared.extend(link("-nostartfiles"));
    shared.extend(link("-Wl,-z,now,-z,relro,-z,nodelete,--build-id=none,--no-undefined"));
    let stub = stub(&out);
    let mut digest = Sha256::new();
    for (path, is_drop_in, variable) in
        [(LIBRARY, false, "ACCELPOOL_SHIM_CUDA"), (DROP_IN, true, "ACCELPOOL_SHIM_CUDA_DROP_IN")]
    {
        let library = out.join(path);
        let name = library.file_name().expect("a library has a name").display();
        fs::create_dir_all(library.parent().expect("it is in OUT_DIR")).expect("OUT_DIR is ours");
        let exports = library.with_extension("map");
        let names = surface::exports(&functions, is_drop_in);
        fs::write(&exports, names).expect("OUT_DIR is ours");
        let mut arguments = shared.clone();
        if is_drop_in {
            arguments.extend(["--cfg".into(), "accelpool_drop_in".into()]);
        }
        arguments.extend(link(&format!("-Wl,-soname,{name}")));
        arguments.extend(["-C".into(), join("link-arg=-Wl,--version-script=", &exports)]);
        // After the objects, which is where the linker looks for what they need.
        arguments.extend(["-C".into(), join("link-arg=", &stub)]);
        let source = here.join("src/lib.rs");
        compiler.run("accelpool_cuda", "cdylib", &source, &library, &arguments);

        let bytes = fs::read(&library).expect("the library was just made");
        assert!(bytes.len() <= LIBRARY_BYTES_MAX, "`{path}` has {} bytes", bytes.len());
        digest.update(&bytes);
        println!("cargo::rustc-env={variable}={}", library.display());
    }
    let digest = digest.finalize();
    let digest = digest.iter().take(8).fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    println!("cargo::rustc-env=ACCELPOOL_SHIM_CUDA_DIGEST={digest:016x}");
}

fn link(argument: &str) -> [OsString; 2] {
    ["-C".into(), format!("link-arg={argument}").into()]
}

/// A C library to link with that has names and no versions.
///
/// The library then asks for no version, and so for none that an old system lacks. And having
/// none of its own it stands in for each version of `dlsym` and `dlvsym`, also where another
/// library that does the same asks for the next one by version.
fn stub(out: &Path) -> PathBuf {
    let lines = LIBC_FUNCTIONS
        .map(|name| format!(".globl {name}\n.type {name}, %function\n{name}: .quad 0\n"));
    let (source, library) = (out.join("libc.s"), out.join("libc.so.6"));
    fs::write(&source, format!(".text\n{}", lines.concat())).expect("OUT_DIR is ours");
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let status = Command::new(&linker)
        .args(["-shared", "-nostdlib", "-Wl,-soname,libc.so.6", "-o"])
        .args([&library, &source])
        .status()
        .expect("the linker can be started");
    assert!(status.success(), "the linker failed for `{}`", source.display());
    library
}

struct Compiler<'a> {
    out: &'a Path,
}

impl Compiler<'_> {
    fn run(&self, name: &str, kind: &str, source: &Path, output: &Path, arguments: &[OsString]) {
        let mut command = Command::new(variable("RUSTC"));
        command.arg(source).arg("-o").arg(output);
        command.args(["--edition", "2024", "--crate-name", name, "--crate-type", kind]);
        command.args(["-C", "panic=abort", "-C", "opt-level=3", "-C", "codegen-units=1"]);
        command.args(["-C", "strip=symbols", "-C", "relocation-model=pic"]);
        if kind == "cdylib" {
            command.args(["-C", "lto=fat"]);
        } else {
            // The base is inlined into the library: it needs no code of its own.
            command.args(["-C", "embed-bitcode=yes"]);
        }
        // Cargo reports what is wrong with the sources when it compiles them itself.
        command.args(["--cap-lints", "allow"]);
        command.env("OUT_DIR", self.out);
        let (host, target) = (variable("HOST"), variable("TARGET"));
        if host != target {
            command.arg("--target").arg(&target);
        }
        if let Some(linker) = env::var_os("RUSTC_LINKER") {
            command.arg("-C").arg(join("linker=", Path::new(&linker)));
        }
        command.args(arguments);
        let outcome = command.output().expect("rustc can be started");
        let messages = String::from_utf8_lossy(&outcome.stderr);
        assert!(outcome.status.success(), "rustc failed for `{}`:\n{messages}", source.display());
    }
}

fn join(start: &str, path: &Path) -> OsString {
    let mut whole = OsString::from(start);
    whole.push(path);
    whole
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"))
}

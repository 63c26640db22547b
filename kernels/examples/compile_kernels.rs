//! Compiles every CUDA kernel, without a GPU, and fails where one spills registers on Ampere or asks for more shared memory than
//! there is. What spills elsewhere is listed.
//!
//! `compile_kernels [FOLDER]`: NVRTC is the system's or in FOLDER. `cargo xtask kernels` fetches one and runs this.
#![expect(clippy::print_stdout, reason = "a report for a terminal")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use stallfree_device::{
    Arch, Dtype, FunctionUse, compile, compiler_knows, compiler_version, search_libraries_in,
};
use stallfree_kernels::cuda::{Build, builds};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How many builds pass between two lines of progress.
const PROGRESS: usize = 50;

/// A build for one architecture.
struct Task {
    build: Build,
    dtype: Dtype,
    arch: Arch,
}

/// What the kernels of a source need at most.
#[derive(Default)]
struct Most {
    num_kernels: usize,
    registers: usize,
    shared_bytes: usize,
    spill_bytes: usize,
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(folder) = args.first() {
        search_libraries_in(Path::new(folder));
    }
    match args.get(1).zip(args.get(2)) {
        Some((part, parts)) => compile_part(part.parse()?, parts.parse()?),
        None => compile_all(args.first().map_or("", String::as_str)),
    }
}

/// Returns every build for Ampere. What a newer architecture runs as well is the same source: once is enough there.
fn tasks() -> Outcome<Vec<Task>> {
    let mut tasks = Vec::new();
    for arch in [Arch::Sm80, Arch::Sm90a, Arch::Sm100a] {
        if !compiler_knows(arch)? {
            continue;
        }
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let is_due = |build: &Build| match build.arch {
                Some(only) => only == arch,
                None => arch == Arch::Sm80 || dtype == Dtype::Bf16,
            };
            let builds = builds(dtype)?.into_iter().filter(is_due);
            tasks.extend(builds.map(|build| Task { build, dtype, arch }));
        }
    }
    Ok(tasks)
}

/// Returns the bytes of shared memory that a block may ask for.
const fn shared_limit(arch: Arch) -> usize {
    match arch {
        Arch::Sm80 => 163 << 10,
        Arch::Sm90a | Arch::Sm100a => 227 << 10,
        Arch::Sm120 => 99 << 10,
    }
}

/// Compiles every `parts`-th build from number `part` on, and prints a line for each kernel.
fn compile_part(part: usize, parts: usize) -> Outcome<()> {
    for Task { build, dtype, arch } in tasks()?.into_iter().skip(part).step_by(parts) {
        let uses = compile(&build.source, arch)?.uses();
        for name in build.kernels {
            let used = uses.iter().find(|used| used.name == *name);
            let used = used.ok_or_else(|| format!("{}: no kernel {name}", build.source.name))?;
            let FunctionUse { registers, spill_bytes, .. } = *used;
            let shared = used.shared_bytes + build.shared_bytes;
            let verdict = match (spill_bytes > 0, arch) {
                _ if shared > shared_limit(arch) => "FAIL",
                (true, Arch::Sm80) => "FAIL",
                (true, _) => "spills",
                (false, _) => "ok",
            };
            let defines: Vec<_> = build
                .source
                .defines
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            println!(
                "{verdict}\t{}\t{}\t{name}\t{registers}\t{shared}\t{spill_bytes}\t{dtype:?} {}",
                build.source.name,
                arch.name(),
                defines.join(" "),
            );
        }
    }
    Ok(())
}

/// Compiles every build, in as many processes as there are cores: within one the compiler takes a lock.
fn compile_all(folder: &str) -> Outcome<()> {
    let (major, minor) = compiler_version()?;
    let (parts, num_builds) =
        (std::thread::available_parallelism().map_or(1, usize::from), tasks()?.len());
    println!("NVRTC {major}.{minor}, {num_builds} builds, {parts} at once");
    let start = |part: usize| {
        Command::new(std::env::current_exe()?)
            .args([folder, &part.to_string(), &parts.to_string()])
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut children: Vec<Child> = (0..parts).map(start).collect::<Result<_, _>>()?;
    let mut most: BTreeMap<(String, String), Most> = BTreeMap::new();
    let mut notable = Vec::new();
    std::thread::scope(|scope| {
        let (lines, seen) = std::sync::mpsc::sync_channel(64);
        for output in children.iter_mut().filter_map(|child| child.stdout.take()) {
            let lines = lines.clone();
            scope.spawn(move || {
                BufReader::new(output)
                    .lines()
                    .map_while(Result::ok)
                    .try_for_each(|line| lines.send(line))
            });
        }
        drop(lines);
        for (index, line) in seen.iter().enumerate() {
            if index % PROGRESS == PROGRESS - 1 {
                println!("  {} kernels", index + 1);
            }
            add(&line, &mut most, &mut notable);
        }
    });
    println!("{:34} {:8} kernels registers shared bytes spilled bytes (the most)", "source", "");
    for ((source, arch), most) in &most {
        println!(
            "{source:34} {arch:8} {:7} {:9} {:12} {:13}",
            most.num_kernels, most.registers, most.shared_bytes, most.spill_bytes
        );
    }
    for child in &mut children {
        if !child.wait()?.success() {
            return Err("a kernel does not compile".into());
        }
    }
    notable.iter().for_each(|line| println!("{line}"));
    match notable.iter().filter(|line| line.starts_with("FAIL")).count() {
        0 => Ok(()),
        faults => Err(format!("{faults} kernels spill or ask for too much shared memory").into()),
    }
}

/// Adds a line of [`compile_part`] to what is reported.
fn add(line: &str, most: &mut BTreeMap<(String, String), Most>, notable: &mut Vec<String>) {
    let fields: Vec<&str> = line.split('\t').collect();
    let [verdict, source, arch, _, registers, shared, spilled, _] = fields[..] else { return };
    let number = |text: &str| text.parse().unwrap_or(usize::MAX);
    let most = most.entry((source.to_owned(), arch.to_owned())).or_default();
    most.num_kernels += 1;
    most.registers = most.registers.max(number(registers));
    most.shared_bytes = most.shared_bytes.max(number(shared));
    most.spill_bytes = most.spill_bytes.max(number(spilled));
    if verdict != "ok" {
        notable.push(line.replace('\t', "  "));
    }
}

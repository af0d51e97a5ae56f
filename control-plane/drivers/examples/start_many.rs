//! What shims cost: the time until a hundred programs run, through the process runtime and by a bare loop of fork and
//! exec, in alternation. `cargo run --release -p meshctl-drivers --example start_many [COUNT]`, after
//! `cargo build --release -p meshctl-drivers --examples`.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshctl_drivers::runtime::Runtime;
use meshctl_drivers::runtime::conformance::script;
use meshctl_drivers::runtime::process::ProcessRuntime;
use meshctl_model::instance::Program;

const ROUNDS: usize = 5;
const PROGRAM: [&str; 2] = ["sleep", "1000"];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(100), |count| count.parse())?;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let bare = bare(count)?;
        let ours = ours(count).await?;
        ratios.push(ours.as_secs_f64() / bare.as_secs_f64());
        println!("{count} programs: bare {bare:.1?}, process runtime {ours:.1?}");
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2} (min {:.2}, max {:.2})", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
    Ok(())
}

/// Spawning returns when the program is executed.
fn bare(count: usize) -> Result<Duration, Box<dyn Error>> {
    let begun = Instant::now();
    let mut children = Vec::new();
    for _ in 0..count {
        let mut command = Command::new(PROGRAM[0]);
        children.push(command.args(&PROGRAM[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    }
    let took = begun.elapsed();
    for child in &mut children {
        child.kill()?;
        child.wait()?;
    }
    Ok(took)
}

async fn ours(count: usize) -> Result<Duration, Box<dyn Error>> {
    let state = std::env::temp_dir().join(format!("meshctl-start-many-{}", std::process::id()));
    let nursery: PathBuf = std::env::current_exe()?.with_file_name("nursery");
    let runtime = Arc::new(ProcessRuntime::new(&state, nursery)?);
    let begun = Instant::now();
    let starts: Vec<_> = (0..count)
        .map(|number| {
            let mut spec = script(&format!("sleeper-{number}"), "", std::path::Path::new("/"));
            spec.program = Program::Command(PROGRAM.map(str::to_owned).to_vec());
            let runtime = Arc::clone(&runtime);
            tokio::spawn(async move { Runtime::start(&*runtime, &spec).await })
        })
        .collect();
    let mut failed = None;
    for start in starts {
        failed = failed.or(start.await?.err());
    }
    let took = begun.elapsed();
    for number in 0..count {
        Runtime::stop(&*runtime, &format!("sleeper-{number}")).await?;
    }
    std::fs::remove_dir_all(&state)?;
    failed.map_or(Ok(took), |error| Err(error.into()))
}

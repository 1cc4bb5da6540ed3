//! What the machine gives: engine, memory, and what it enforces for the person's secrets.

use tilekit::engine::backend::cpu::{Activations, Cpu, InstructionSet};
use tilekit::engine::backend::{BackendChoice, BackendKind};
use tilekit::host::{Host, MEMORY_RESERVE_BYTES, Protection, Swap};

use super::Finding;
use crate::commands::size;
use crate::failure::Failure;

/// What the keys need to be locked in memory: a page for each of a handful of keys.
const LOCKED_BYTES: u64 = 64 << 10;

/// Which engine would compute, and why.
pub(super) struct EngineInUse {
    pub(super) name: &'static str,
    pub(super) why: String,
    pub(super) description: String,
}

/// Finds out which engine would compute.
pub(super) fn engine(host: &Host) -> Result<EngineInUse, Failure> {
    let (kind, why) = BackendChoice::Auto.resolve()?;
    let why = why.to_string();
    let description = match kind {
        BackendKind::Mlx => format!("mlx: {why}"),
        BackendKind::Cpu => {
            let cpu = Cpu::new(host.physical_cores, Activations::default(), InstructionSet::default());
            format!("cpu, {} with {} threads: {why}", cpu.instruction_set(), cpu.threads())
        }
    };
    Ok(EngineInUse { name: kind.name(), why, description })
}

/// How much memory there is.
pub(super) fn memory(host: &Host) -> Finding {
    let text = format!("{} of {} available", size(host.memory_available_bytes), size(host.memory_total_bytes));
    if host.memory_available_bytes < 2 * MEMORY_RESERVE_BYTES {
        return Finding::warn("memory", text, "close other programs before you load a model");
    }
    Finding::ok("memory", text)
}

/// What is enforced for this process.
pub(super) fn protection() -> Vec<Finding> {
    let Protection { can_dump_core, is_dumpable, lockable_bytes, swap } = Protection::probe();
    let mut findings = vec![match can_dump_core {
        false => Finding::ok("crashes", "core dumps are off for this program: no memory is written when it crashes"),
        true => Finding::bad("crashes", "core dumps are on", "run `ulimit -c 0` before you start Tiles"),
    }];
    findings.push(match is_dumpable {
        Some(false) => Finding::ok("snooping", "other programs of this user can't read this one's memory; root can"),
        Some(true) => Finding::warn(
            "snooping",
            "other programs of this user can read this one's memory",
            "end those you don't trust",
        ),
        None => Finding::ok("snooping", "macOS lets only signed debuggers, and root, read this program's memory"),
    });
    findings.push(match lockable_bytes {
        None => Finding::ok("locking", "keys are kept from being swapped out (no limit)"),
        Some(bytes) if bytes >= LOCKED_BYTES => {
            Finding::ok("locking", format!("keys are kept from being swapped out ({} allowed)", size(bytes)))
        }
        Some(bytes) => {
            let text = format!("only {} may be locked in memory, so keys may be swapped out", size(bytes));
            Finding::warn("locking", text, "raise the limit with `ulimit -l`, or switch swap off")
        }
    });
    findings.push(match swap {
        Swap::Off => Finding::ok("swap", "off: what is in memory isn't written to this machine's disk"),
        Swap::Protected { how } => Finding::ok("swap", how),
        Swap::Plain { areas } => Finding::warn(
            "swap",
            format!("{}: parts of a conversation may be written there, unencrypted", areas.join(", ")),
            "switch it off with `swapoff -a` while you talk, or use a machine that encrypts it",
        ),
        Swap::Unknown => Finding::warn("swap", "this system doesn't say whether it swaps", "take it that it does"),
    });
    findings
}

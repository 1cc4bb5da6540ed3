//! Two machines on one cable: network namespaces of this one, and what goes over the wire between them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long something that takes a moment may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The interface of each machine that is one end of the cable.
pub(crate) const WIRE: &str = "wire";

/// The address of the machine between two that can't reach each other.
pub(crate) const BETWEEN: &str = "10.9.0.1";

/// What a machine has beside the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A default route over the cable.
    Route,
    /// No route to anywhere else: two laptops and a cable.
    NoRoute,
    /// Another interface, which has the default route.
    TwoInterfaces,
}

/// A machine: a process that holds its network namespace.
pub(crate) struct Machine {
    holder: Child,
}

/// What goes over a machine's interfaces.
pub(crate) struct Tap {
    sniffer: Child,
    file: PathBuf,
}

/// Ends the processes of a test that panics, too.
impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.sniffer.kill();
        let _ = self.sniffer.wait();
    }
}

fn tool(name: &str) -> Option<&'static str> {
    let places: &[&str] = match name {
        "ip" => &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"],
        "nsenter" => &["/usr/bin/nsenter"],
        "unshare" => &["/usr/bin/unshare"],
        _ => &["/usr/bin/python3"],
    };
    places.iter().find(|place| Path::new(place).exists()).copied()
}

/// Waits until something is so.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} didn't happen");
        std::thread::yield_now();
    }
}

impl Machine {
    /// A machine without a network; `None`, and a line that says so, where none can be made.
    fn new() -> Option<Self> {
        let tools = ["ip", "nsenter", "unshare", "python3"].map(tool);
        let mut unshare = Command::new(tools[2].unwrap_or("unshare"));
        unshare.args(["--net", "sh", "-c", "echo made; exec sleep 600"]).stdin(Stdio::null());
        let holder = unshare.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut machine = Self { holder };
        let mut line = String::new();
        let stdout = machine.holder.stdout.take().expect("it was asked for");
        BufReader::new(stdout).read_line(&mut line).expect("a pipe can be read");
        let can = line.trim() == "made" && tools.iter().all(Option::is_some);
        if !can {
            let _ = writeln!(
                std::io::stderr(),
                "two machines: skipped, this machine lets no test make network namespaces, or lacks one of ip, nsenter, python3"
            );
        }
        can.then_some(machine)
    }

    /// Two machines with a cable between them: 10.7.0.1 and 10.7.0.2.
    pub(crate) fn pair(layout: Layout) -> Option<[Self; 2]> {
        let machines = [Self::new()?, Self::new()?];
        for machine in &machines {
            // What the kernel itself sends for IPv6 would be among what the program sends.
            machine.shell("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        }
        let [one, other] = [&machines[0], &machines[1]].map(|machine| machine.holder.id().to_string());
        machines[0].ok(&["ip", "link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", &other]);
        assert_ne!(one, other);
        for (number, machine) in machines.iter().enumerate() {
            machine.ok(&["ip", "link", "set", "lo", "up"]);
            machine.ok(&["ip", "addr", "add", &format!("10.7.0.{}/24", number + 1), "dev", WIRE]);
            machine.ok(&["ip", "link", "set", WIRE, "up"]);
            match layout {
                Layout::NoRoute => {}
                Layout::Route => {
                    machine.ok(&["ip", "route", "add", "default", "via", &format!("10.7.0.{}", 2 - number)])
                }
                Layout::TwoInterfaces => {
                    machine.ok(&["ip", "link", "add", "other", "type", "veth", "peer", "name", "far-end"]);
                    machine.ok(&["ip", "link", "set", "far-end", "up"]);
                    machine.ok(&["ip", "addr", "add", &format!("10.{}.0.1/24", 8 + number), "dev", "other"]);
                    machine.ok(&["ip", "link", "set", "other", "up"]);
                    machine.ok(&["ip", "route", "add", "default", "dev", "other"]);
                }
            }
        }
        Some(machines)
    }

    /// Two machines that can't reach each other, and between them a third one, which both reach as [`BETWEEN`].
    pub(crate) fn apart() -> Option<[Self; 3]> {
        let machines = [Self::new()?, Self::new()?, Self::new()?];
        let [one, between, other] = &machines;
        for machine in &machines {
            machine.ok(&["ip", "link", "set", "lo", "up"]);
            machine.shell("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 > /proc/sys/net/ipv4/ip_forward");
        }
        between.ok(&["ip", "addr", "add", &format!("{BETWEEN}/32"), "dev", "lo"]);
        for (number, machine) in [(7, one), (8, other)] {
            let id = between.holder.id().to_string();
            let far = format!("to-{number}");
            machine.ok(&["ip", "link", "add", WIRE, "type", "veth", "peer", "name", &far, "netns", &id]);
            machine.ok(&["ip", "addr", "add", &format!("10.{number}.0.1/24"), "dev", WIRE]);
            between.ok(&["ip", "addr", "add", &format!("10.{number}.0.9/24"), "dev", &far]);
            machine.ok(&["ip", "link", "set", WIRE, "up"]);
            between.ok(&["ip", "link", "set", &far, "up"]);
            machine.ok(&["ip", "route", "add", "default", "via", &format!("10.{number}.0.9")]);
        }
        Some(machines)
    }

    /// A machine that has nothing but its loopback.
    pub(crate) fn alone() -> Option<Self> {
        let machine = Self::new()?;
        machine.ok(&["ip", "link", "set", "lo", "up"]);
        Some(machine)
    }

    /// The same command on this machine.
    pub(crate) fn command(&self, of: &Command) -> Command {
        let mut command = Command::new(tool("nsenter").expect("it was looked for"));
        command.args(["--target", &self.holder.id().to_string(), "--net", "--"]);
        command.arg(of.get_program()).args(of.get_args()).env_clear().stdin(Stdio::null());
        command.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = of.get_current_dir() {
            command.current_dir(folder);
        }
        command
    }

    fn tool(&self, words: &[&str]) -> Command {
        let mut command = Command::new(tool(words[0]).expect("it was looked for"));
        command.args(&words[1..]);
        self.command(&command)
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) {
        let output = self.tool(words).output().expect("it can be run");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn shell(&self, line: &str) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]);
        assert!(self.command(&command).status().expect("it can be run").success(), "{line}");
    }

    /// Begins to record what goes over this machine's interfaces.
    pub(crate) fn tap(&self, file: &Path) -> Tap {
        let script = sniffer();
        let file_name = file.display().to_string();
        let mut command = self.tool(&["python3", &script, &file_name]);
        let mut sniffer = command.stdout(Stdio::piped()).spawn().expect("it can be run");
        let mut line = String::new();
        let stdout = sniffer.stdout.take().expect("it was asked for");
        BufReader::new(stdout).read_line(&mut line).expect("a pipe can be read");
        assert_eq!(line, "ready\n");
        Tap { sniffer, file: file.into() }
    }

    /// All packets that a tap has recorded until now.
    pub(crate) fn recorded(&self, tap: &Tap) -> Vec<Vec<u8>> {
        let mark = format!("mark-{:?}", Instant::now());
        self.ok(&["python3", &sniffer(), "--mark", &mark]);
        let mut packets = Vec::new();
        wait_until("the mark's arrival", || {
            packets = tap.packets();
            packets.iter().any(|packet| contains(packet, mark.as_bytes()))
        });
        packets.retain(|packet| !contains(packet, b"mark-"));
        packets
    }
}

impl Tap {
    fn packets(&self) -> Vec<Vec<u8>> {
        let text = std::fs::read_to_string(&self.file).expect("it is there");
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let byte =
            |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("hexadecimal"), 16).expect("hexadecimal");
        whole.lines().map(|line| line.as_bytes().chunks_exact(2).map(byte).collect()).collect()
    }
}

fn sniffer() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/sniff.py").display().to_string()
}

/// Whether `bytes` has `part`.
pub(crate) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

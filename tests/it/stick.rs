//! A flash drive for one test: a genuine exFAT that can be slowed, pulled, filled, write-protected and cut off its power.
//!
//! `tests/lab/stick.py` is the device, in mount and process namespaces of its own: nobody else sees it, and it goes with
//! the test, however that ends. The program under test is started in there; the test looks in from outside.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::drive::{PASSPHRASE, build, identify, scratch};

/// Large enough for a bundle with the debug program, and for a second one.
const IMAGE_BYTES: u64 = 160 << 20;
/// The programs that the lab needs besides root, FUSE and loop devices.
const TOOLS: &[&str] =
    &["python3", "unshare", "nsenter", "losetup", "fincore", "mount.exfat-fuse", "mkfs.exfat", "fsck.exfat"];

/// An exFAT drive that is plugged in.
pub(crate) struct Stick {
    folder: PathBuf,
    device: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What this host lacks, if anything.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".into());
    }
    let device = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|path| !Path::new(path).exists());
    device.map(Into::into).or_else(|| TOOLS.iter().find(|name| !has_program(name)).map(|name| (*name).into()))
}

/// Whether this host has a program of the system.
pub(crate) fn has_program(name: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|folder| Path::new(folder).join(name).exists())
}

/// Says in one line where the lab can't be set up.
pub(crate) fn has_lab() -> bool {
    static HAS_LAB: OnceLock<bool> = OnceLock::new();
    *HAS_LAB.get_or_init(|| {
        let missing = missing();
        if let Some(missing) = &missing {
            let _ = writeln!(std::io::stderr(), "fault lab: skipped, this host has no {missing}");
        }
        missing.is_none()
    })
}

/// How often a test of the lab goes round: `few`, or more in `just soak`.
pub(crate) fn rounds(name: &str, few: u32) -> u32 {
    std::env::var(format!("TILES_SOAK_{name}")).ok().and_then(|count| count.parse().ok()).unwrap_or(few)
}

fn run(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A sealed bundle whose program has no debug information, with an identity that opens quickly; made once.
fn personal() -> &'static Path {
    static PERSONAL: OnceLock<PathBuf> = OnceLock::new();
    PERSONAL.get_or_init(|| {
        let folder = scratch().join("stick");
        fs::create_dir_all(&folder).expect("target can be written");
        let program = folder.join("tiles");
        fs::copy(env!("CARGO_BIN_EXE_tiles"), &program).expect("target can be written");
        // It only makes the image smaller.
        run(Command::new("strip").arg(&program));
        let root = build(&folder, &program);
        identify(&root);
        fs::write(folder.join("passphrase"), format!("{PASSPHRASE}\n")).expect("target can be written");
        root
    })
}

/// An image with that bundle in `Tiles`; made once.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let format = |image: &Path| format_with(image, Command::new("mkfs.exfat").args(["-L", "TILES"]));
        let mut stick = Stick::insert(&new_folder(), "", format);
        assert!(run(Command::new("cp").arg("-r").arg(personal()).arg(stick.outside(""))), "cp");
        stick.tell("unplug");
        let image = stick.image();
        // Its folder stays for the run.
        std::mem::forget(stick);
        image
    })
}

/// Makes an empty image and puts a file system on it.
fn format_with(image: &Path, format: &mut Command) {
    let file = File::create(image).expect("target can be written");
    file.set_len(IMAGE_BYTES).expect("target can be written");
    assert!(run(format.arg(image)), "the image can't be formatted");
}

fn new_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = scratch().join(format!("stick-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&folder).expect("target can be written");
    folder
}

impl Stick {
    /// A plugged-in drive with a bundle that has an identity; `None` where there is no lab.
    pub(crate) fn new() -> Option<Self> {
        has_lab().then(|| Self::insert(&new_folder(), "", copy_template))
    }

    /// An empty drive with a file system of the kernel, ext4, where there is a lab and it can make one.
    pub(crate) fn ext4() -> Option<Self> {
        if !has_lab() || !has_program("mkfs.ext4") {
            return None;
        }
        // The passphrase file lies beside it.
        personal();
        let format = |image: &Path| format_with(image, Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]));
        Some(Self::insert(&new_folder(), "ext4", format))
    }

    /// Plugs in a new drive that `fill` makes the image of; `how` says what file system is on it.
    fn insert(folder: &Path, how: &str, fill: impl FnOnce(&Path)) -> Self {
        let (image, lab) = (folder.join("image"), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/stick.py"));
        fill(&image);
        // The drive is mounted here on its side; on ours the folder stays empty.
        fs::create_dir_all(folder.join("TILES")).expect("target can be written");
        let mut device = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--", "python3"])
            .args([&lab, &image, &folder.join("device"), &folder.join("TILES")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there");
        let commands = device.stdin.take();
        let answers = BufReader::new(device.stdout.take().expect("it is piped"));
        let mut stick = Self { folder: folder.into(), device, commands, answers };
        stick.answer("start");
        stick.tell(format!("plug {how}").trim());
        stick
    }

    fn answer(&mut self, command: &str) -> String {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the device is there");
        let rest = answer.strip_prefix("ok").unwrap_or_else(|| panic!("the device was told {command:?}: {answer:?}"));
        rest.trim().to_owned()
    }

    /// Tells the device something; see `tests/lab/stick.py`.
    #[track_caller]
    pub(crate) fn tell(&mut self, command: &str) -> String {
        let commands = self.commands.as_mut().expect("it is open until the end");
        writeln!(commands, "{command}").expect("the device is there");
        self.answer(command)
    }

    /// A count of the device, such as `writes`.
    pub(crate) fn count(&mut self, name: &str) -> u64 {
        counted(&self.tell("stat"), name)
    }

    /// Waits until the system holds the whole program in memory. One that starts reads itself in the background; that
    /// the system has dropped pages since is made good here.
    pub(crate) fn settle(&mut self) {
        let program = self.outside("Tiles/bin/linux-x86_64/tiles");
        let bytes = fs::metadata(&program).expect("it is plugged in").len();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let held = || {
            let told =
                Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(&program).output();
            String::from_utf8_lossy(&told.expect("fincore is there").stdout).trim().parse::<u64>().unwrap_or(0)
        };
        while held() < bytes {
            fs::read(&program).expect("it is plugged in");
            assert!(std::time::Instant::now() < end, "the program isn't read into memory: {} of {bytes} bytes", held());
        }
    }

    /// Where the image is. What was not synced isn't in it.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// The bundle's root as the program sees it.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("TILES/Tiles")
    }

    /// A path on the drive as this process sees it.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.device.id()));
        root.join(self.folder.join("TILES").join(path).strip_prefix("/").expect("it is absolute"))
    }

    /// A file beside the drive, on the host.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The path of the passphrase file, for `--passphrase-file`.
    pub(crate) fn passphrase(&self) -> String {
        scratch().join("stick/passphrase").display().to_string()
    }

    /// A program in there, with no environment but HOME, and no input.
    pub(crate) fn inside(&self, program: &Path) -> Command {
        let home = self.beside("home");
        fs::create_dir_all(&home).expect("target can be written");
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.device.id().to_string(), "--mount", "--"]).arg(program);
        command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").stdin(Stdio::null());
        command
    }

    /// The program on the drive.
    pub(crate) fn command(&self) -> Command {
        self.inside(&self.root().join("bin/linux-x86_64/tiles"))
    }

    /// The program of the host with the bundle on the drive: so that it isn't read from the drive at each start.
    pub(crate) fn host_command(&self) -> Command {
        let mut command = self.inside(Path::new(env!("CARGO_BIN_EXE_tiles")));
        command.arg("--bundle").arg(self.root());
        command
    }

    /// Runs the program on the drive with the passphrase.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).args(["--passphrase-file", &self.passphrase()]);
        command.output().expect("nsenter is there")
    }

    /// Unplugs the drive, has what is wrong with the file system mended as an operating system would, and plugs it in
    /// again. Gives what the device told of its last time.
    pub(crate) fn replug(&mut self) -> String {
        let told = self.unplug();
        self.tell("plug");
        told
    }

    /// Unplugs the drive and mends its file system.
    pub(crate) fn unplug(&mut self) -> String {
        let told = self.tell("unplug");
        // Not first `-n`: that ends with success whatever it found.
        run(Command::new("fsck.exfat").arg("-y").arg(self.image()));
        told
    }

    /// Fills the drive up to that many bytes, about.
    pub(crate) fn fill(&self, free_bytes: u64) {
        let filler = File::create(self.outside("filler")).expect("it is plugged in");
        filler.set_len(self.room().saturating_sub(free_bytes)).expect("it fits");
    }

    /// How many bytes can still be written.
    fn room(&self) -> u64 {
        let found = rustix::fs::statvfs(self.outside("")).expect("it is plugged in");
        found.f_bavail * found.f_frsize
    }

    /// Waits until what was removed is free. A file's space is, once nobody has it open: not at once, where another
    /// test's thread started a program meanwhile, which has what was open until it is executed.
    fn wait_for_room(&self, bytes: u64) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while self.room() < bytes {
            assert!(std::time::Instant::now() < end, "{} bytes are free, not {bytes}", self.room());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Makes the drive what it was at first.
    pub(crate) fn renew(&mut self) {
        self.tell("unplug");
        copy_template(&self.image());
        self.tell("plug");
    }
}

/// Over what is there: the device has the file open.
fn copy_template(image: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").arg(template()).arg(image).status();
    assert!(copied.is_ok_and(|status| status.success()), "the image can't be copied");
}

/// The value of `name` in what a device told.
pub(crate) fn counted(told: &str, name: &str) -> u64 {
    let mut pairs = told.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).expect("the device tells it")
}

impl Drop for Stick {
    fn drop(&mut self) {
        // The end of its input ends the device, and with it its mounts.
        drop(self.commands.take());
        let _ = self.device.wait();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

#[test]
fn what_was_synced_stays_and_what_was_not_may_go() {
    let Some(mut stick) = Stick::new() else { return };
    let path = stick.outside("synced");
    let file =
        File::create(&path).and_then(|mut file| file.write_all(b"synced").map(|()| file)).expect("it is plugged in");
    file.sync_all().expect("it is plugged in");
    drop(file);
    fs::write(stick.outside("lost"), vec![7; 64 << 10]).expect("it is plugged in");
    assert!(stick.count("writes") > 16, "the device has them");
    stick.tell("cut 0 1 0");
    assert!(fs::read_dir(stick.outside("")).is_err() || fs::read(&path).is_err() || fs::write(&path, b"x").is_err());
    let told = stick.replug();
    assert!(counted(&told, "lost") > 100, "{told}");
    assert_eq!(fs::read(&path).expect("it is plugged in"), b"synced");
    let left = fs::read(stick.outside("lost")).unwrap_or_default();
    assert!(left != vec![7; 64 << 10], "what was lost is there");

    stick.fill(1 << 20);
    let full = fs::write(stick.outside("more"), vec![7; 2 << 20]).expect_err("it is full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    fs::remove_file(stick.outside("more")).expect("it is plugged in");
    stick.wait_for_room(1 << 19);
    stick.tell("rate 1000000");
    let began = std::time::Instant::now();
    fs::write(stick.outside("slow"), vec![7; 500_000]).expect("it is plugged in");
    assert!(began.elapsed().as_millis() >= 450, "{:?}", began.elapsed());
}

//! `zmlx launch`: start a command as several ranks, on this machine or on several.

use std::ffi::{OsStr, OsString};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::builder::RangedU64ValueParser;

use crate::output::Outcome;
use crate::ranks::hostfile::{self, Host};
use crate::ranks::{self, COMMANDS, MLX_HOSTFILE, MLX_RANK, Parallel, ZMLX_PARALLEL};

/// Arguments of `zmlx launch`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each rank holds and computes a part of the model (--backend mlx or cuda; with cuda, each rank of a machine has its own GPU). Rank 0 prints and serves; the others print errors only.\n\n\
                  Example: zmlx launch --hosts 10.0.0.1,10.0.0.2 -- generate --model mlx-community/Qwen3-30B-A3B-4bit -p Hello"
)]
pub(crate) struct Args {
    /// Start N ranks on this machine.
    #[arg(
        short,
        long,
        value_name = "N",
        required_unless_present_any = ["hosts", "hostfile"],
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=64)
    )]
    n_ranks: Option<usize>,
    /// Start a rank on each of these hosts: on an address of this machine directly, elsewhere by ssh. The first host is rank 0.
    #[arg(long, value_name = "HOST,…", value_delimiter = ',', conflicts_with = "n_ranks")]
    hosts: Vec<String>,
    /// Start a rank on each host of a file in the format of mlx.launch.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["n_ranks", "hosts"])]
    hostfile: Option<PathBuf>,
    /// The first port of hosts; each address has the next one. On one machine free ports are found.
    #[arg(long, value_name = "PORT", default_value_t = 32323, value_parser = clap::value_parser!(u16).range(1..))]
    starting_port: u16,
    /// How the ranks share the model: each computes a part of every layer (tensor), or some of the layers (pipeline). Pipeline suits
    /// slow connections; the ranks then compute one after the other.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    parallel: Parallel,
    /// The command and its arguments: bench, generate, logits or serve.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// This machine, as MLX's launcher names it.
const HERE: &str = "127.0.0.1";
/// How long ranks may take to end after one has failed: longer than they wait for each other.
const GRACE: Duration = Duration::from_secs(9);
const POLL: Duration = Duration::from_millis(20);
const ENDED_BY_SIGNAL: &str = "ended by a signal, and all ranks with it";

/// Starts the ranks and waits for them.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let name = args.command.first().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(COMMANDS.contains(&name), "launch can start {}, not {name:?}", ranks::commands());
    let hosts = match (&args.hostfile, args.n_ranks) {
        (Some(file), _) => hostfile::hosts(file)?,
        (None, Some(n_ranks)) => vec![here(); n_ranks],
        (None, None) => args.hosts.iter().map(|host| of_name(host)).collect::<Result<_>>()?,
    };
    let addresses = match args.n_ranks {
        Some(n_ranks) => free_addresses(n_ranks)?,
        None => addresses_of(&hosts, args.starting_port)?,
    };
    let program = std::env::current_exe().context("the path of this program")?;
    let json = serde_json::to_string(&addresses)?;
    let mut file = tempfile::NamedTempFile::new().context("the file with the addresses of all ranks")?;
    std::io::Write::write_all(&mut file, json.as_bytes())?;

    let is_asked = watch_signals()?;
    let mut ranks = Ranks(Vec::new());
    for (rank, host) in hosts.iter().enumerate() {
        let mut command = if is_here(host) {
            let mut command = Command::new(&program);
            command.args(&args.command).env(MLX_RANK, rank.to_string()).env(MLX_HOSTFILE, file.path());
            command.env(ZMLX_PARALLEL, args.parallel.name());
            command
        } else {
            let script = script((rank, args.parallel), &json, program.as_os_str(), &args.command)?;
            let mut command = Command::new("ssh");
            command.args(["-o", "BatchMode=yes", "--", &host.ssh, &script]);
            command
        };
        if rank > 0 {
            command.stdin(Stdio::null());
            // Ctrl-C is for rank 0, which ends the others.
            #[cfg(unix)]
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
        }
        let child =
            command.spawn().with_context(|| format!("rank {rank} on {} could not be started", host.ssh))?;
        ranks.0.push(Rank { child, status: None });
    }
    ranks.wait(&is_asked)
}

fn here() -> Host {
    Host { ssh: HERE.to_owned(), ips: vec![HERE.to_owned()] }
}

/// Whether ranks on a host can be started without ssh.
fn is_here(host: &Host) -> bool {
    let is_own = |address: &String| TcpListener::bind((address.as_str(), 0)).is_ok();
    host.ssh == HERE || host.ips.iter().any(|address| *address == host.ssh && is_own(address))
}

/// A host that ssh and the others know by the same name; `user@host` is for ssh.
fn of_name(host: &str) -> Result<Host> {
    let address = host.rsplit('@').next().unwrap_or(host);
    ensure!(!address.is_empty(), "--hosts: expected the names of hosts, got an empty one");
    Ok(Host { ssh: host.to_owned(), ips: vec![address.to_owned()] })
}

/// An address with a free port for each rank.
fn free_addresses(n_ranks: usize) -> Result<Vec<Vec<String>>> {
    // All at once: otherwise one could be found twice.
    let listeners = (0..n_ranks).map(|_| TcpListener::bind((HERE, 0))).collect::<std::io::Result<Vec<_>>>();
    let address = |listener: TcpListener| Ok(vec![listener.local_addr()?.to_string()]);
    listeners.context("no port is free")?.into_iter().map(address).collect()
}

fn addresses_of(hosts: &[Host], starting_port: u16) -> Result<Vec<Vec<String>>> {
    let mut ports = starting_port..=u16::MAX;
    let mut address = |ip: &String| {
        let port = ports.next().context("--starting-port: there are not enough ports above it")?;
        Ok(format!("{ip}:{port}"))
    };
    hosts.iter().map(|host| host.ips.iter().map(&mut address).collect()).collect()
}

/// What a shell on another machine runs: the hostfile must be a file there.
fn script(
    (rank, parallel): (usize, Parallel),
    hostfile: &str,
    program: &OsStr,
    command: &[OsString],
) -> Result<String> {
    let mut words = Vec::new();
    for word in std::iter::once(program).chain(command.iter().map(OsString::as_os_str)) {
        words.push(quoted(word.to_str().with_context(|| format!("{}: not UTF-8", word.display()))?));
    }
    let (hostfile, words, how) = (quoted(hostfile), words.join(" "), parallel.name());
    let environment = format!("{MLX_RANK}={rank} {MLX_HOSTFILE}=\"$f\" {ZMLX_PARALLEL}={how}");
    Ok(format!(
        "f=$(mktemp) && printf %s {hostfile} >\"$f\" && env {environment} {words}; s=$?; rm -f \"$f\"; exit $s"
    ))
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// From here on the flags say that the user wants an end.
fn watch_signals() -> Result<Asked> {
    let asked = Asked { n_interrupts: Arc::default(), terminated: Arc::default() };
    let n_interrupts = Arc::clone(&asked.n_interrupts);
    ctrlc::set_handler(move || {
        n_interrupts.fetch_add(1, Ordering::SeqCst);
    })?;
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&asked.terminated))?;
    }
    Ok(asked)
}

struct Asked {
    /// How often Ctrl-C was pressed. Rank 0 hears of it itself.
    n_interrupts: Arc<AtomicUsize>,
    terminated: Arc<AtomicBool>,
}

struct Rank {
    child: Child,
    status: Option<ExitStatus>,
}

/// Killed when dropped.
struct Ranks(Vec<Rank>);

impl Ranks {
    fn wait(&mut self, asked: &Asked) -> Result<Outcome> {
        // Since a rank has failed, or the user has asked for an end.
        let mut ending = None;
        let mut is_terminated = false;
        loop {
            for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
                rank.status = rank.child.try_wait()?;
            }
            if self.0.iter().all(|rank| rank.status.is_some()) {
                break;
            }
            if asked.terminated.swap(false, Ordering::SeqCst) {
                // The first one is for rank 0, as Ctrl-C is: it finishes its answers, and the others end with it.
                if is_terminated || !self.terminate_rank_0() {
                    bail!(ENDED_BY_SIGNAL);
                }
                is_terminated = true;
            }
            // After the first Ctrl-C a server finishes its answers.
            if asked.n_interrupts.load(Ordering::SeqCst) > 1 || self.failed().next().is_some() {
                let since = ending.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE {
                    bail!("not all ranks ended within {} seconds: they were killed", GRACE.as_secs());
                }
            }
            std::thread::sleep(POLL);
        }
        let is_interrupted = asked.n_interrupts.load(Ordering::SeqCst) > 0;
        if is_interrupted && self.failed().next().is_some() {
            return Ok(Outcome::Interrupted);
        }
        if is_terminated && self.failed().next().is_some() {
            bail!(ENDED_BY_SIGNAL);
        }
        // A rank that a signal ended is why others failed.
        match self.failed().min_by_key(|(_, status)| status.code().is_some()) {
            Some((rank, status)) => bail!("rank {rank} ended with {status}"),
            None => Ok(Outcome::Done),
        }
    }

    /// Passes the wish for an end on to rank 0. Returns whether it has been told.
    fn terminate_rank_0(&self) -> bool {
        let Some(rank) = self.0.first().filter(|rank| rank.status.is_none()) else { return false };
        #[cfg(unix)]
        {
            use nix::sys::signal::{Signal, kill};
            let id = i32::try_from(rank.child.id()).map(nix::unistd::Pid::from_raw);
            id.is_ok_and(|id| kill(id, Signal::SIGTERM).is_ok())
        }
        #[cfg(not(unix))]
        false
    }

    fn failed(&self) -> impl Iterator<Item = (usize, ExitStatus)> {
        let failed = |rank: &Rank| rank.status.filter(|status| !status.success());
        self.0.iter().enumerate().filter_map(move |(i, rank)| Some((i, failed(rank)?)))
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
            // One that has just ended cannot be killed.
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_words() {
        let hosts = [of_name("me@a").unwrap(), of_name("b").unwrap()];
        assert_eq!(hosts[0], Host { ssh: "me@a".into(), ips: vec!["a".into()] });
        assert_eq!(addresses_of(&hosts, 32323).unwrap(), [["a:32323"], ["b:32324"]]);
        assert!(is_here(&here()) && is_here(&of_name("127.0.0.1").unwrap()));
        // An address that is for documents only.
        assert!(!is_here(&of_name("192.0.2.1").unwrap()) && !is_here(&of_name("me@127.0.0.1").unwrap()));
        assert!(addresses_of(&hosts, u16::MAX).is_err() && of_name("me@").is_err());
        assert_eq!(quoted("it's"), r"'it'\''s'");
        let script = script(
            (1, Parallel::Pipeline),
            "[[\"a:1\"]]",
            OsStr::new("/opt/zm lx"),
            &["generate".into(), "-p".into(), "$x".into()],
        );
        let script = script.unwrap();
        assert!(
            script.contains(
                "env MLX_RANK=1 MLX_HOSTFILE=\"$f\" ZMLX_PARALLEL=pipeline '/opt/zm lx' 'generate' '-p' '$x'"
            ),
            "{script}"
        );
    }
}

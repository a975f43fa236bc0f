//! Runs a compiled kernel in a separate process, so that a crash or an endless loop ends that process and not the test.
//!
//! The buffers are passed in a file that the process maps, the plan on its standard input. Faults come back on its
//! standard output.

use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Fault, FaultKind};
use crate::{Error, Order};

/// The offset of each buffer is a multiple of this, and at least as much unused space follows each buffer.
const ALIGNMENT: usize = 4096;

/// What the kernel may do with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
    /// Nothing in it may be read before it is written, and the kernel must write all of it.
    Output,
}

/// The memory of a buffer argument.
#[derive(Debug)]
pub(crate) enum Memory<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    Mutable(&'a mut [u8]),
}

impl Memory<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(b) => b,
            Self::Owned(b) => b,
            Self::Mutable(b) => b,
        }
    }
}

/// A bound buffer.
#[derive(Debug)]
pub(crate) struct Buffer<'a> {
    pub(crate) index: u32,
    pub(crate) memory: Memory<'a>,
    pub(crate) access: Access,
    /// The number of bytes by which the buffer begins after an aligned address; less than a page.
    pub(crate) skew: usize,
}

/// Everything about a dispatch except the buffers.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kernel: String,
    pub(crate) detect: bool,
    pub(crate) order: Order,
    pub(crate) cpu_seconds: u64,
    pub(crate) grid: [u32; 3],
    pub(crate) group: [u32; 3],
    pub(crate) threadgroup: Vec<(u32, usize)>,
    pub(crate) constants: Vec<(u32, Vec<u8>)>,
}

/// Runs `program`. Results are written back to the mutable and owned buffers, even if there were faults.
pub(crate) fn run(program: &Path, plan: &Plan, buffers: &mut [Buffer<'_>]) -> Result<(), Error> {
    let offsets = offsets(buffers);
    let mut file = tempfile::NamedTempFile::new().map_err(Error::io(std::env::temp_dir()))?;
    let path = file.path().to_owned();
    write_buffers(file.as_file_mut(), buffers, &offsets).map_err(Error::io(&path))?;

    let mut command = Command::new(program);
    command.arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(Error::io(program))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A runner that ended early reports the reason on its standard output.
        let _ = stdin.write_all(describe(plan, buffers, &offsets).as_bytes());
    }
    let report = collect(&mut child, plan)?;
    read_back(file.as_file_mut(), buffers, &offsets).map_err(Error::io(&path))?;
    interpret(program, plan, &report, &child_status(&mut child))
}

fn offsets(buffers: &[Buffer<'_>]) -> Vec<usize> {
    let mut next = ALIGNMENT;
    let place = |buffer: &Buffer<'_>| {
        let here = next + buffer.skew;
        next += buffer.memory.bytes().len().next_multiple_of(ALIGNMENT) + ALIGNMENT;
        here
    };
    let mut offsets: Vec<usize> = buffers.iter().map(place).collect();
    offsets.push(next);
    offsets
}

fn write_buffers(file: &mut std::fs::File, buffers: &[Buffer<'_>], offsets: &[usize]) -> std::io::Result<()> {
    file.set_len(offsets[buffers.len()] as u64)?;
    for (buffer, &offset) in buffers.iter().zip(offsets) {
        file.seek(std::io::SeekFrom::Start(offset as u64))?;
        file.write_all(buffer.memory.bytes())?;
    }
    file.flush()
}

fn read_back(file: &mut std::fs::File, buffers: &mut [Buffer<'_>], offsets: &[usize]) -> std::io::Result<()> {
    for (buffer, &offset) in buffers.iter_mut().zip(offsets) {
        let target: &mut [u8] = match &mut buffer.memory {
            Memory::Borrowed(_) => continue,
            Memory::Owned(bytes) => bytes,
            Memory::Mutable(bytes) => bytes,
        };
        file.seek(std::io::SeekFrom::Start(offset as u64))?;
        file.read_exact(target)?;
    }
    Ok(())
}

/// The plan in the format that the runner reads.
fn describe(plan: &Plan, buffers: &[Buffer<'_>], offsets: &[usize]) -> String {
    let (order, seed) = match plan.order {
        Order::Forward => (0, 0),
        Order::Reverse => (1, 0),
        Order::Random(seed) => (2, seed),
    };
    let Plan { detect, cpu_seconds, grid: [gx, gy, gz], group: [tx, ty, tz], .. } = plan;
    // The options come first, because the buffers are set up according to them.
    let mut text = format!(
        "run detect {} order {order} seed {seed} seconds {cpu_seconds}\n\
         grid {gx} {gy} {gz}\n\
         group {tx} {ty} {tz}\n",
        u8::from(*detect)
    );
    text += &format!("kernel {}\n", plan.kernel);
    for (buffer, offset) in buffers.iter().zip(offsets) {
        let access = match buffer.access {
            Access::Read => 'r',
            Access::ReadWrite => 'w',
            Access::Output => 'o',
        };
        text += &format!("buffer {} {offset} {} {access}\n", buffer.index, buffer.memory.bytes().len());
    }
    for (index, bytes) in &plan.threadgroup {
        text += &format!("threadgroup {index} {bytes}\n");
    }
    for (id, value) in &plan.constants {
        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
        text += &format!("constant {id} {hex}\n");
    }
    text
}

/// Reads the report of the runner. The runner limits its processor time itself; the clock here is a second limit.
fn collect(child: &mut Child, plan: &Plan) -> Result<String, Error> {
    let deadline =
        Instant::now() + Duration::from_secs(plan.cpu_seconds.saturating_mul(20).saturating_add(60));
    let mut stdout = child.stdout.take();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut text = String::new();
            if let Some(pipe) = &mut stdout {
                let _ = pipe.read_to_string(&mut text);
            }
            text
        });
        let mut pause = Duration::from_micros(200);
        while !reader.is_finished() {
            if Instant::now() > deadline {
                let _ = child.kill();
                let message = "stopped: neither finished nor out of processor time".to_owned();
                return Err(Error::Runner { kernel: plan.kernel.clone(), message });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(reader.join().unwrap_or_default())
    })
}

fn child_status(child: &mut Child) -> String {
    child.wait().map_or_else(|e| e.to_string(), |status| status.to_string())
}

fn interpret(program: &Path, plan: &Plan, report: &str, status: &str) -> Result<(), Error> {
    let kernel = plan.kernel.clone();
    if let Some(message) = report.lines().find_map(|l| l.strip_prefix("refused\t")) {
        return Err(Error::Call { kernel, message: message.to_owned() });
    }
    let mut faults: Vec<(Fault, Option<String>)> = report.lines().filter_map(parse_fault).collect();
    if faults.is_empty() {
        return match report.lines().last() {
            Some("done") => Ok(()),
            _ => Err(Error::Runner { kernel, message: status.to_owned() }),
        };
    }
    locate(program, &mut faults);
    Err(Error::Faults { kernel, faults: faults.into_iter().map(|(fault, _)| fault).collect() })
}

/// A fault, and the program counter from which its place will be found.
fn parse_fault(line: &str) -> Option<(Fault, Option<String>)> {
    let mut fields = line.strip_prefix("fault\t")?.splitn(8, '\t');
    let kind = FaultKind::parse(fields.next()?)?;
    let file = fields.next()?.to_owned();
    let line: u32 = fields.next()?.parse().ok()?;
    let pc = fields.next()?.to_owned();
    let mut group = fields.next()?.split(',').map(|n| n.parse().unwrap_or(0));
    let thread = fields.next()?.parse().ok();
    let count = fields.next()?.parse().ok()?;
    let fault = Fault {
        kind,
        message: fields.next()?.to_owned(),
        file: Some(file).filter(|f| !f.is_empty()),
        line: Some(line).filter(|&l| l > 0),
        group: std::array::from_fn(|_| group.next().unwrap_or(0)),
        thread,
        count,
    };
    let unlocated = fault.line.is_none() && pc.starts_with("0x");
    Some((fault, unlocated.then_some(pc)))
}

/// Finds the lines of program counters with `addr2line`, which is installed with the compilers. Without it the lines
/// stay unknown.
fn locate(program: &Path, faults: &mut [(Fault, Option<String>)]) {
    for (fault, pc) in faults {
        let Some(pc) = pc else { continue };
        // The counter is a return address. The address before it lies within the call.
        let Some(address) = u64::from_str_radix(&pc[2..], 16).ok().and_then(|a| a.checked_sub(1)) else {
            continue;
        };
        let found =
            Command::new("addr2line").arg("-i").arg("-e").arg(program).arg(format!("{address:#x}")).output();
        let Ok(found) = found else { return };
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        // From the innermost inlined function outwards: the first place outside of the shim.
        let place =
            text.lines().filter_map(|l| l.rsplit_once(':')).find(|(file, _)| !file.contains("/shim/"));
        if let Some((file, line)) = place {
            let line = line.split_whitespace().next().and_then(|l| l.parse().ok()).filter(|&l| l > 0);
            fault.line = line;
            let folder = crate::cache::folder().display().to_string();
            let file = file.strip_prefix(&folder).map_or(file, |f| f.trim_start_matches('/'));
            fault.file = line.map(|_| file.to_owned());
        }
    }
}

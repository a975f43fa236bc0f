//! Files with the hosts of a group: the one that ranks read, and the one that a launcher reads.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::source::read_text;

/// The addresses of each rank, as MLX's ring reads them: `[["10.0.0.1:32323"], ["10.0.0.2:32324"]]`. A file of blanks, which
/// MLX's launcher writes for one process, has none.
pub(crate) fn addresses(path: &Path) -> Result<Vec<Vec<String>>> {
    let file = path.display();
    let text = read_text(path)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let addresses: Vec<Vec<String>> = serde_json::from_str(&text).with_context(|| {
        format!("{file}: expected a list of addresses for each rank, as [[\"host:port\"], …]")
    })?;
    let n_connections = addresses.first().map_or(0, Vec::len);
    for (rank, of_rank) in addresses.iter().enumerate() {
        ensure!(
            of_rank.len() == n_connections && n_connections > 0,
            "{file}: expected as many addresses for each rank, got {n_connections} for rank 0 and {} for rank {rank}",
            of_rank.len()
        );
        for address in of_rank {
            split(address).with_context(|| format!("{file}: rank {rank}"))?;
            let same = addresses[..rank].iter().position(|others| others.contains(address));
            if let Some(other) = same {
                bail!("{file}: {address} is the address of rank {other} and of rank {rank}");
            }
        }
    }
    Ok(addresses)
}

/// Host and port of an address.
pub(crate) fn split(address: &str) -> Result<(&str, u16)> {
    let parts = address.split_once(':').filter(|(host, _)| !host.is_empty());
    let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok().filter(|port| *port > 0)?)));
    parts.with_context(|| format!("expected host:port, got {address:?}"))
}

/// A machine that ranks are started on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Host {
    /// What ssh calls it.
    pub(crate) ssh: String,
    /// Its addresses, one connection for each.
    #[serde(default)]
    pub(crate) ips: Vec<String>,
}

/// The hosts of a file in the format of MLX's launcher: `{"hosts": [{"ssh": "a", "ips": ["10.0.0.1"]}, …]}`, or that list alone.
pub(crate) fn hosts(path: &Path) -> Result<Vec<Host>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        Hosts { hosts: Vec<Host> },
        List(Vec<Host>),
    }
    let file = path.display();
    let text = read_text(path)?;
    let (File::Hosts { hosts } | File::List(hosts)) = serde_json::from_str(&text).with_context(|| {
        format!("{file}: expected {{\"hosts\": [{{\"ssh\": \"name\", \"ips\": [\"address\"]}}, …]}}")
    })?;
    ensure!(!hosts.is_empty(), "{file}: there are no hosts");
    for host in &hosts {
        ensure!(!host.ssh.is_empty(), "{file}: ssh: expected the name of a host, got an empty one");
        ensure!(
            !host.ips.is_empty(),
            "{file}: {}: ips: expected an address that other hosts can reach",
            host.ssh
        );
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn addresses_of_ranks() {
        let read = |text: &str| addresses(file(text).path());
        assert_eq!(
            read(r#"[["a:1", "a:2"], ["10.0.0.1:3", "b:65535"]]"#).unwrap()[1],
            ["10.0.0.1:3", "b:65535"]
        );
        assert_eq!(read("\n").unwrap().len(), 0);
        for (text, want) in [
            ("{", "expected a list of addresses"),
            (r#"["a:1"]"#, "expected a list of addresses"),
            (r#"[["a:1"], []]"#, "got 1 for rank 0 and 0 for rank 1"),
            (r#"[[], []]"#, "got 0 for rank 0"),
            (r#"[["a:1"], ["b"]]"#, "rank 1: expected host:port, got \"b\""),
            (r#"[["a:0"], ["b:1"]]"#, "rank 0: expected host:port"),
            (r#"[["a:1"], ["b:65536"]]"#, "rank 1: expected host:port"),
            (r#"[["a:1"], ["a:1"]]"#, "a:1 is the address of rank 0 and of rank 1"),
        ] {
            let error = crate::output::message(&read(text).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
        }
        assert!(addresses(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn hosts_of_a_launcher() {
        let read = |text: &str| hosts(file(text).path());
        let want = [Host { ssh: "a".into(), ips: vec!["10.0.0.1".into()] }];
        let list = r#"[{"ssh": "a", "ips": ["10.0.0.1"], "rdma": [null]}]"#;
        assert_eq!(read(list).unwrap(), want);
        assert_eq!(read(&format!(r#"{{"backend": "ring", "envs": [], "hosts": {list}}}"#)).unwrap(), want);
        for (text, want) in [
            ("[]", "there are no hosts"),
            (r#"[{"ips": []}]"#, "expected {\"hosts\""),
            (r#"[{"ssh": "", "ips": ["1"]}]"#, "ssh: expected the name"),
            (r#"[{"ssh": "a"}]"#, "a: ips: expected an address"),
        ] {
            let error = crate::output::message(&read(text).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}

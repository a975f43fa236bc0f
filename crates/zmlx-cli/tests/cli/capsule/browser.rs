//! The report in a real browser: a screenshot shows the plots, the console has no message, and the page makes no
//! request.
//!
//! Without a browser the test prints a note and passes. If the variable `CI` is set, it fails instead.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{capsule, record, write};

/// The path of a Chromium browser, or the command in `ZMLX_CHROMIUM`.
fn browser() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ZMLX_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let files = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    files.into_iter().find(|file| file.is_file())
}

/// A decoded screenshot.
struct Picture {
    width: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn open(path: &Path) -> Self {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!(info.bit_depth, png::BitDepth::Eight);
        let n_channels = info.color_type.samples();
        assert!(n_channels >= 3, "{info:?}");
        let pixels =
            bytes[..info.buffer_size()].chunks_exact(n_channels).map(|p| [p[0], p[1], p[2]]).collect();
        Self { width: info.width as usize, pixels }
    }

    /// How many pixels have the colour, and the width and height of the box around them.
    fn find(&self, colour: [u8; 3]) -> (usize, usize, usize) {
        let at = self.pixels.iter().enumerate().filter(|(_, p)| **p == colour).map(|(i, _)| i);
        let places: Vec<_> = at.map(|i| (i % self.width, i / self.width)).collect();
        let extent = |of: fn(&(usize, usize)) -> usize| {
            let all = || places.iter().map(of);
            all().max().unwrap_or(0) - all().min().unwrap_or(0)
        };
        (places.len(), extent(|p| p.0), extent(|p| p.1))
    }
}

/// The rendering of a page by the browser.
struct View {
    picture: Picture,
    /// The messages on its console: errors of scripts, and violations of the page's content policy.
    console: Vec<String>,
    /// The requests of the page, apart from the page itself.
    requests: Vec<String>,
}

fn look(browser: &Path, page: &Path, dir: &Path, scheme: &str) -> View {
    let at = |what: &str| dir.join(format!("{scheme}{what}"));
    let (shot, log) = (at(".png"), at(".net.json"));
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    // The browser's own requests to the network must find no host.
    command.arg("--host-resolver-rules=MAP * ~NOTFOUND");
    command.args(["--hide-scrollbars", "--window-size=1100,2400", "--enable-logging=stderr"]);
    // In this setting 0 is dark and 1 is light.
    command.arg(format!("--blink-settings=preferredColorScheme={}", usize::from(scheme == "light")));
    command.arg(format!("--user-data-dir={}", at(".profile").display()));
    command.arg(format!("--log-net-log={}", log.display()));
    command.arg(format!("--screenshot={}", shot.display())).arg(format!("file://{}", page.display()));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && shot.exists(), "{stderr}");
    let console = stderr.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
    // Requests of the browser itself do not have the page as their origin.
    let is_request =
        |line: &&str| line.contains("\"initiator\":") && !line.contains("\"initiator\":\"not an origin\"");
    let log = std::fs::read_to_string(&log).unwrap();
    let requests = log.lines().filter(is_request).map(str::to_owned).collect();
    View { picture: Picture::open(&shot), console, requests }
}

#[test]
fn the_report_is_drawn_in_a_browser() {
    let Some(browser) = browser() else {
        let required = std::env::var_os("CI").is_some_and(|v| !v.is_empty());
        assert!(!required, "no Chromium: install the package chromium, or name one in ZMLX_CHROMIUM");
        eprintln!("skipped: no Chromium here (package chromium)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let files = [
        write(dir.path(), "a.json", &record::bench()),
        write(dir.path(), "b.json", &record::validation()),
        write(dir.path(), "c.json", &record::hostile()),
    ];
    let page = dir.path().join("report.html");
    let args = [&["report".into()][..], &files, &["-o".into(), page.clone()]].concat();
    capsule(&args).ok();
    if let Some(keep) = std::env::var_os("ZMLX_KEEP_REPORT") {
        std::fs::copy(&page, Path::new(&keep).join("report.html")).unwrap();
    }
    // First check that the test itself notices a message and a request of a page.
    let bad = dir.path().join("bad.html");
    std::fs::write(&bad, "<img src=http://127.0.0.1:9/x.png><script>console.error('wrong')</script>")
        .unwrap();
    let view = look(&browser, &bad, dir.path(), "bad");
    assert!(view.console.iter().any(|line| line.contains("wrong")), "{:?}", view.console);
    assert!(view.requests.iter().any(|line| line.contains("127.0.0.1:9")), "{:?}", view.requests);

    // The colours of the style sheet: page, text, and the series stock and fused.
    for (scheme, [page_colour, ink, stock, fused]) in [
        ("light", [[0xff; 3], [0x1b, 0x1f, 0x24], [0x7a, 0x87, 0x94], [0x1d, 0x5f, 0xd1]]),
        ("dark", [[0x14, 0x17, 0x1b], [0xe6, 0xe9, 0xec], [0x8e, 0x9a, 0xa6], [0x6e, 0xa2, 0xff]]),
    ] {
        let View { picture, console, requests } = look(&browser, &page, dir.path(), scheme);
        assert_eq!((console, requests), (vec![], vec![]), "{scheme}");
        if let Some(keep) = std::env::var_os("ZMLX_KEEP_REPORT") {
            let name = format!("{scheme}.png");
            std::fs::copy(dir.path().join(&name), Path::new(&keep).join(name)).unwrap();
        }
        let share = |colour| picture.find(colour).0 as f64 / picture.pixels.len() as f64;
        assert!(share(page_colour) > 0.5, "{scheme}: {}", share(page_colour));
        assert!(share(ink) > 0.002, "{scheme}: {}", share(ink));
        // The bars of the roofline alone have 14 × several hundred pixels. Curves and dots lie elsewhere.
        for (name, colour, least) in [("stock", stock, 3000), ("fused", fused, 6000)] {
            let (n, width, height) = picture.find(colour);
            assert!(
                n > least && width > 300 && height > 400,
                "{scheme}, {name}: {n} pixels in {width} × {height}"
            );
        }
    }
}

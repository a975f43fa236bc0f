//! The suite has a case for every op of the table.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::path::Path;

use zmlx_core::Op;

#[test]
fn every_op_has_a_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources: String = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    for op in Op::all() {
        let calls = [format!(".{}(", op.name), format!("stock::{}(", op.name)];
        assert!(sources.contains(&calls[0]), "{}: no case calls it", op.name);
        let is_compared = op.part.is_none() || sources.contains(&calls[1]);
        assert!(is_compared, "{}: no case compares it with its composition", op.name);
    }
}

//! Generates `msl/swizzle.h`: every swizzle of vectors of two, three and four components.

use std::fmt::Write as _;

const NAMES: [[char; 4]; 2] = [['x', 'y', 'z', 'w'], ['r', 'g', 'b', 'a']];

/// The text of the header: the macros `MSL_SWIZZLES_2` to `_4` with the members of a vector's union.
pub(crate) fn header() -> String {
    let mut out = String::from("#pragma once\n");
    for n in 2..=4usize {
        let _ = writeln!(out, "#define MSL_SWIZZLES_{n} \\");
        for k in 2..=4u32 {
            for code in 0..n.pow(k) {
                let indices: Vec<usize> = (0..k).map(|i| code / n.pow(i) % n).collect();
                let list: Vec<String> = indices.iter().map(ToString::to_string).collect();
                for names in NAMES {
                    let name: String = indices.iter().map(|&i| names[i]).collect();
                    let _ = writeln!(out, "  swizzle<T, {n}, {}> {name}; \\", list.join(", "));
                }
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_swizzle_is_there_once() {
        let header = super::header();
        for (n, count) in [(2usize, 4 + 8 + 16), (3, 9 + 27 + 81), (4, 16 + 64 + 256)] {
            let members = header.lines().filter(|l| l.starts_with(&format!("  swizzle<T, {n},"))).count();
            assert_eq!(members, 2 * count, "vectors of {n}");
        }
        assert!(header.contains("swizzle<T, 4, 3, 2, 1, 0> wzyx;"));
        assert!(header.contains("swizzle<T, 3, 2, 0> br;"));
    }
}

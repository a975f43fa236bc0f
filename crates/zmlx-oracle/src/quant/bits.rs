//! Reads and writes codes in a little-endian bit stream, one bit at a time.

/// The `n_bits` bits from bit `first` on, the lowest first. Bit `j` of the stream is bit `j % 8` of byte `j / 8`. For
/// 32-bit words stored little-endian, this is also bit `j % 32` of word `j / 32`.
///
/// # Panics
/// If the stream ends before bit `first + n_bits`.
#[must_use]
pub fn read_bits(bytes: &[u8], first: usize, n_bits: usize) -> u32 {
    let mut code = 0;
    for bit_idx in 0..n_bits {
        let at = first + bit_idx;
        let bit = (bytes[at / 8] >> (at % 8)) & 1;
        code |= u32::from(bit) << bit_idx;
    }
    code
}

/// Writes the low `n_bits` bits of `code` where [`read_bits`] finds them.
///
/// # Panics
/// If the stream ends before bit `first + n_bits`.
pub fn write_bits(bytes: &mut [u8], first: usize, n_bits: usize, code: u32) {
    for bit_idx in 0..n_bits {
        let at = first + bit_idx;
        let bit = ((code >> bit_idx) & 1) as u8;
        bytes[at / 8] = bytes[at / 8] & !(1 << (at % 8)) | bit << (at % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back_and_neighbours_stay() {
        for n_bits in 1..=9 {
            let mut stream = vec![0xff; 16];
            let codes: Vec<u32> = (0..14).map(|i| (i * 37 + 11) % (1 << n_bits)).collect();
            for (i, &code) in codes.iter().enumerate() {
                write_bits(&mut stream, i * n_bits, n_bits, code);
            }
            for (i, &code) in codes.iter().enumerate() {
                assert_eq!(read_bits(&stream, i * n_bits, n_bits), code, "{n_bits} bits, element {i}");
            }
            assert_eq!(read_bits(&stream, 14 * n_bits, 2), 3, "bits after the last code are untouched");
        }
    }

    #[test]
    fn lowest_bits_come_first() {
        // 3-bit codes 1, 2, 3 : bits 100 010 110 → bytes 0b11_010_001, 0b0
        let mut stream = vec![0; 2];
        for (i, code) in [1, 2, 3].into_iter().enumerate() {
            write_bits(&mut stream, 3 * i, 3, code);
        }
        assert_eq!(stream, [0b1101_0001, 0]);
    }
}

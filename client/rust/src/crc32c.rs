//! The checksum of what is uploaded.

/// The polynomial of Castagnoli, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let (mut checksum, mut bit) = (byte as u32, 0);
        while bit < 8 {
            checksum = (checksum >> 1) ^ (POLYNOMIAL * (checksum & 1));
            bit += 1;
        }
        table[byte] = checksum;
        byte += 1;
    }
    table
}

/// The CRC-32C of some bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |checksum, byte| {
        (checksum >> 8) ^ TABLE[usize::from(checksum.to_le_bytes()[0] ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_the_digits_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}

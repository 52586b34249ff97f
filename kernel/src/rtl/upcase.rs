//! The upper case of a unit of UTF-16, without a locale.
//!
//! A unit has another upper case if Unicode's simple mapping has one of a single unit *and* that maps back: letters come in pairs. So
//! nothing that isn't the other half of a pair is taken for it: not the dotless i for I, the long s for S, the final sigma for the
//! other. Units of surrogate pairs are themselves. The table is made by build.rs.
//!
//! Not as NT:  NT's table is of a Unicode of its time; this one has pairs that came later.
//! Sources:    WDK, `RtlUpcaseUnicodeChar`; Unicode, UnicodeData.txt, "Simple_Uppercase_Mapping".

include!(concat!(env!("OUT_DIR"), "/upcase.rs"));

/// The upper case of `unit`.
#[doc(alias = "RtlUpcaseUnicodeChar")]
#[inline]
pub fn upcase(unit: u16) -> u16 {
    let block = &BLOCKS[usize::from(INDEX[usize::from(unit >> 7)])];
    unit.wrapping_add(block[usize::from(unit & 0x7F)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_have_their_other_half_and_nothing_else_has_one() {
        let pairs = [
            ('a', 'A'),
            ('z', 'Z'),
            ('é', 'É'),
            ('ÿ', 'Ÿ'),
            ('ж', 'Ж'),
            ('σ', 'Σ'),
            ('ǆ', 'Ǆ'),
            ('ᾀ', 'ᾈ'),
            ('ⅷ', 'Ⅷ'),
            ('ｚ', 'Ｚ'),
        ];
        for (lower, upper) in pairs {
            assert_eq!(upcase(lower as u16), upper as u16, "{lower}");
            assert_eq!(upcase(upper as u16), upper as u16, "{upper}");
        }
        // Without a single unit, or not the other half of what they would map to.
        for alone in "ßŉıſςµͅẛǅ@[`{0\\\0".chars() {
            assert_eq!(upcase(alone as u16), alone as u16, "{alone}");
        }
        for unit in 0xD800..=0xDFFF {
            assert_eq!(upcase(unit), unit);
        }
    }

    #[test]
    fn the_upper_case_of_an_upper_case_is_itself_and_no_two_have_the_same() {
        let mut lower_of = [None; 0x10000];
        for unit in 0..=u16::MAX {
            let upper = upcase(unit);
            assert_eq!(upcase(upper), upper);
            if upper != unit {
                assert_eq!(lower_of[usize::from(upper)].replace(unit), None, "{unit:#x}");
            }
        }
        assert!(lower_of.iter().flatten().count() > 1000);
    }
}

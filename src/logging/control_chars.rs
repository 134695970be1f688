//! Characters that control a terminal or the direction of text instead of being displayed.

/// Unicode's format characters (general category Cf). They are invisible, and some reverse the direction of text.
const FORMAT: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    // Includes the line and paragraph separators, U+2028 and U+2029.
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e007f}'),
];

/// Reports whether a character is a control character (C0, DEL, C1), a line separator or a format character.
#[must_use]
pub fn is_control(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_control();
    }
    character.is_control() || FORMAT.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_control_finds_control_and_format_characters_only() {
        for character in
            ['\0', '\n', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{ad}', '\u{61c}', '\u{200b}', '\u{200f}']
                .into_iter()
                .chain(['\u{2028}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{e0041}'])
        {
            assert!(is_control(character), "{character:?}");
        }
        for character in "a ~ü名🙂\u{301}\u{fe0f}\u{a0}\u{3000}".chars() {
            assert!(!is_control(character), "{character:?}");
        }
    }
}

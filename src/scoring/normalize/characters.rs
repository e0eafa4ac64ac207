//! What single characters stand for.

/// The letter a digit resembles, or the character itself.
pub(super) fn digit_as_letter(c: char) -> char {
    match c {
        '0' => 'o',
        '1' => 'i',
        '3' => 'e',
        '4' => 'a',
        '5' => 's',
        '7' => 't',
        other => other,
    }
}

/// The signs used as an apostrophe.
pub(super) fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’' | 'ʼ' | '‘')
}

/// Marks that take no room: zero-width, joiners, soft hyphen, direction marks, variation selectors, tags.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}')
}

/// The Latin letter a (lower-case, decomposed) letter of another script is commonly used for.
pub(super) fn confusable(c: char) -> char {
    match c {
        'а' | 'α' | 'ɑ' | '∂' => 'a',
        'в' | 'β' | 'ь' | 'ß' => 'b',
        'с' | 'ϲ' | '¢' => 'c',
        'ԁ' | 'ɗ' => 'd',
        'е' | 'ε' | 'є' | 'ә' | '€' => 'e',
        'ƒ' => 'f',
        'ɡ' | 'ց' => 'g',
        'н' | 'һ' | 'η' => 'h',
        'і' | 'ι' | 'ı' | 'ɩ' | '¡' => 'i',
        'ј' => 'j',
        'к' | 'κ' => 'k',
        'ӏ' | 'ł' => 'l',
        'м' | 'μ' => 'm',
        'п' => 'n',
        'о' | 'ο' | 'σ' | 'ø' | 'օ' => 'o',
        'р' | 'ρ' => 'p',
        'ԛ' => 'q',
        'г' => 'r',
        'ѕ' | 'ꜱ' => 's',
        'т' | 'τ' => 't',
        'υ' | 'ս' => 'u',
        'ѵ' | 'ν' => 'v',
        'ш' | 'ω' | 'ԝ' => 'w',
        'х' | 'χ' => 'x',
        'у' | 'γ' | 'ү' => 'y',
        'ʟ' => 'l',
        'ʏ' => 'y',
        '’' | 'ʼ' | '‘' => '\'',
        other => other,
    }
}

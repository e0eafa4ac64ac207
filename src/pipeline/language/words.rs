//! Words that tell a language: frequent, and of one language among those told apart here.

/// Of English, informal English too.
pub(super) const ENGLISH: &str = "the and is are was you your youre you're u ur of to that it its it's this these those with for not have has had what they \
    their them he she his her him my be been being but at by from who whom how why when where which will would can could should there here just like all about \
    get got go going gonna wanna im i'm i've ive i'd don't dont doesn't didn't can't cant isn't isnt ain't aint if or because we us our out up down off some any \
    than then too very more most much many people think know want need say said make made see look really right well even only into over after before never always \
    such stop shut go away man guys dude bro lol lmao wtf omg stfu yall y'all yo fuck fucking fucked shit bullshit damn hell bitch ass asshole dumb dumbass stupid \
    crap sucks hate another every everyone nobody nothing something thing things good bad time day way did does do're let's lets";

/// Of other languages, one a line.
pub(super) const OTHERS: [&str; 9] = [
    // German
    "du bist ist sind ich nicht ein eine einen einem einer der das den dem und wir ihr euch dich dir mich mir sich wie auch aber doch \
     schon noch kein keine keinen halt hast habe haben hat wird wurde werden mit von zu zum zur bei aus auf für über nur sehr immer warum weil dass daß wenn dieser \
     diese dieses mein dein deine seine ihre heute morgen bitte danke uns nach vor ganz mal jetzt geh hau ab mensch leute dumm doof blöd so'n",
    // Spanish
    "eres es el los las una unos unas que qué y de del en por para con sin pero más muy mi tu tus sus está están estoy estás esto esta este eso esa ese \
     como cómo porque cuando donde quien quién todo todos nada siempre nunca también hay ser soy somos son fue tiene tengo tienes hace hola gracias usted ustedes \
     nos te lo le les cállate cara vete yo él ella nosotros ellos",
    // French
    "tu es est sont je suis nous vous ils elles il elle le les un une des du de et pas ne que qui quoi avec pour dans sur sans mais très plus cette ces \
     mon ton ta tes ses mes être avoir avez avons ont fait faire comme quand où parce toujours jamais aussi bien merci bonjour c'est t'es j'ai n'est qu'il d'un l'on au aux \
     espèce gros ferme",
    // Italian
    "sei è sono io tu lui lei noi voi loro il lo gli le una uno di del della dei delle che chi non con per tra fra ma più molto questo questa questi queste \
     quello quella come perché quando dove sempre mai anche ho hai ha abbiamo avete hanno essere fare grazie ciao vai via tutti tutto niente nel nella alla",
    // Portuguese
    "você vocês é são sou és eu ele ela nós eles elas o os as um uma uns de do da dos das em no na nos nas que quem não com por para sem mas mais muito meu minha \
     seu sua este esta isso isto como porque quando onde sempre nunca também tem tenho foi estava está estão obrigado olá tudo todos vai cala",
    // Dutch
    "jij je bent is zijn ik wij jullie hij zij het een van en niet geen met voor maar ook nog wel naar bij uit op aan te dat dit deze die wat wie waar waarom omdat \
     altijd nooit heel erg mijn jouw zijn haar ons onze hebben heb hebt heeft wordt worden kan moet zo'n ga weg hou",
    // Polish
    "jesteś jest są jestem ja ty my wy oni nie tak się na do z ze w we i ale czy co kto jak gdzie kiedy dlaczego bo że ten ta to te tego tej ci cię mnie mi \
     dla od po przez jeszcze już bardzo zawsze nigdy mój twój być mam masz ma",
    // Turkish
    "sen siz ben biz bir bu şu ve ile ama çok daha değil mi mı mu var yok için gibi kadar ne neden nasıl kim hiç her şey seni beni sana bana misin mısın musun sin sın",
    // Swedish, Danish and Norwegian
    "du är er jag jeg det den att at och og inte ikke en ett et som på för med av men han hon hun vi ni de dem mig meg dig deg sig seg har var ska skal kan vad hvad \
     hva varför hvorfor mycket meget alltid aldri nej ja",
];

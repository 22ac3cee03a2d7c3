"""Which icons show the faces, states and gestures that emoji show, written by hand: for each set, the icon by the emoji's code."""

FACES = {
    "awesome": {
        "1f620": "face-angry", "1f635": "face-dizzy", "1f633": "face-flushed", "1f641": "face-frown", "1f626": "face-frown-open",
        "1f62c": "face-grimace", "1f600": "face-grin", "1f604": "face-grin-beam", "1f605": "face-grin-beam-sweat",
        "1f60d": "face-grin-hearts", "1f606": "face-grin-squint", "1f923": "face-grin-squint-tears", "1f929": "face-grin-stars",
        "1f602": "face-grin-tears", "1f61b": "face-grin-tongue", "1f61d": "face-grin-tongue-squint", "1f61c": "face-grin-tongue-wink",
        "1f603": "face-grin-wide", "1f617": "face-kiss", "1f619": "face-kiss-beam", "1f618": "face-kiss-wink-heart",
        "1f610": "face-meh", "1f636": "face-meh-blank", "1f644": "face-rolling-eyes", "1f62d": "face-sad-cry", "1f622": "face-sad-tear",
        "1f642": "face-smile", "1f60a": "face-smile-beam", "1f609": "face-smile-wink", "1f62e": "face-surprise", "1f62b": "face-tired",
    },
    "bootstrap": {
        "1f620": "emoji-angry-fill", "1f632": "emoji-astonished-fill", "1f635": "emoji-dizzy-fill", "1f611": "emoji-expressionless-fill",
        "1f641": "emoji-frown-fill", "1f62c": "emoji-grimace-fill", "1f600": "emoji-grin-fill", "1f60d": "emoji-heart-eyes-fill",
        "1f617": "emoji-kiss-fill", "1f606": "emoji-laughing-fill", "1f610": "emoji-neutral-fill", "1f642": "emoji-smile-fill",
        "1f643": "emoji-smile-upside-down-fill", "1f60e": "emoji-sunglasses-fill", "1f62e": "emoji-surprise-fill",
        "1f622": "emoji-tear-fill", "1f609": "emoji-wink-fill",
    },
    "material": {
        "1f620": "emoticon-angry", "1f615": "emoticon-confused", "1f60e": "emoticon-cool", "1f622": "emoticon-cry",
        "1f635": "emoticon-dead",
        "1f604": "emoticon-excited", "1f641": "emoticon-sad", "1f600": "emoticon-happy", "1f606": "emoticon-lol",
        "1f610": "emoticon-neutral", "1f642": "emoticon", "1f61b": "emoticon-tongue", "1f609": "emoticon-wink",
    },
    "tabler": {
        "1f620": "mood-angry-filled", "1f615": "mood-confused-filled", "1f636": "mood-empty-filled", "1f600": "mood-happy-filled",
        "1f610": "mood-neutral-filled", "1f641": "mood-sad-filled", "1f642": "mood-smile-filled",
    },
}  # fmt: skip

STATES = {
    "awesome": {
        "1f44d": "thumbs-up", "1f44e": "thumbs-down", "1f512": "lock", "1f513": "lock-open", "1f4d5": "book", "1f4d6": "book-open",
        "1f4c1": "folder", "1f4c2": "folder-open", "1f507": "volume-xmark", "1f508": "volume-off", "1f509": "volume-low",
        "1f50a": "volume-high", "1f514": "bell", "1f515": "bell-slash", "1f50b": "battery-full", "1faab": "battery-quarter",
        "231b": "hourglass-end", "23f3": "hourglass-half", "2764": "heart", "1f494": "heart-crack", "1f4c8": "arrow-trend-up",
        "1f4c9": "arrow-trend-down", "1f6eb": "plane-departure", "1f6ec": "plane-arrival", "2601": "cloud", "1f327": "cloud-showers-heavy",
        "1f329": "cloud-bolt", "2600": "sun", "26c5": "cloud-sun", "1f377": "wine-glass", "1f942": "champagne-glasses", "26d3": "link",
        "26d3-200d-1f4a5": "link-slash", "1f53a": "caret-up", "1f53b": "caret-down", "1f53c": "square-caret-up",
        "1f53d": "square-caret-down", "25b6": "play", "23f8": "pause", "23e9": "forward", "23ea": "backward", "23eb": "angles-up",
        "23ec": "angles-down", "1f697": "car-side", "1f698": "car", "270a": "hand-fist", "270b": "hand", "270c": "hand-peace",
        "1f596": "hand-spock",
    },
    "bootstrap": {
        "1f44d": "hand-thumbs-up-fill", "1f44e": "hand-thumbs-down-fill", "1f512": "lock-fill", "1f513": "unlock-fill",
        "1f4ea": "mailbox2", "1f4eb": "mailbox2-flag", "1f507": "volume-mute-fill", "1f508": "volume-off-fill", "1f509": "volume-down-fill",
        "1f50a": "volume-up-fill", "1f514": "bell-fill", "1f515": "bell-slash-fill", "1f50b": "battery-full", "1faab": "battery-low",
        "231b": "hourglass-bottom", "23f3": "hourglass-split", "2764": "heart-fill", "1f494": "heartbreak-fill",
        "1f498": "arrow-through-heart-fill", "1f495": "hearts", "1f4c8": "graph-up", "1f4c9": "graph-down", "2601": "cloud-fill",
        "1f327": "cloud-rain-heavy-fill", "1f328": "cloud-snow-fill", "1f329": "cloud-lightning-fill", "26c8": "cloud-lightning-rain-fill",
        "2600": "sun-fill", "26c5": "cloud-sun-fill", "1f95a": "egg-fill", "1f373": "egg-fried", "2709": "envelope-fill",
        "1f4e9": "envelope-arrow-down-fill", "1f505": "brightness-low-fill", "1f506": "brightness-high-fill", "1f53a": "caret-up-fill",
        "1f53b": "caret-down-fill", "1f53c": "caret-up-square-fill", "1f53d": "caret-down-square-fill", "25b6": "caret-right-square-fill",
        "25c0": "caret-left-square-fill", "23eb": "chevron-double-up", "23ec": "chevron-double-down", "23e9": "fast-forward-btn-fill",
        "23ea": "rewind-btn-fill", "23f8": "pause-btn-fill",
    },
    "material": {
        "1f44d": "thumb-up", "1f44e": "thumb-down", "1f512": "lock", "1f513": "lock-open-variant", "1f4d5": "book", "1f4d6": "book-open",
        "1f4c1": "folder", "1f4c2": "folder-open", "1f302": "umbrella-closed", "2602": "umbrella", "1f4ea": "mailbox",
        "1f4eb": "mailbox-up", "1f4ed": "mailbox-open", "1f4ec": "mailbox-open-up", "1f507": "volume-off", "1f508": "volume-low",
        "1f509": "volume-medium", "1f50a": "volume-high", "1f514": "bell", "1f515": "bell-off", "1f50b": "battery", "1faab": "battery-20",
        "231b": "timer-sand-complete", "23f3": "timer-sand", "2764": "heart", "1f494": "heart-broken", "1f495": "heart-multiple",
        "1f4c8": "trending-up", "1f4c9": "trending-down", "1f6eb": "airplane-takeoff", "1f6ec": "airplane-landing", "2601": "cloud",
        "1f327": "weather-pouring", "1f328": "weather-snowy", "1f329": "weather-lightning", "26c8": "weather-lightning-rainy",
        "2600": "weather-sunny", "26c5": "weather-partly-cloudy", "1f95a": "egg", "1f373": "egg-fried", "1f388": "balloon",
        "1f389": "party-popper", "1f383": "halloween", "1f480": "skull", "2709": "email", "1f4e9": "email-receive",
        "1f4e4": "tray-arrow-up", "1f4e5": "tray-arrow-down", "26d3": "link-variant", "26d3-200d-1f4a5": "link-variant-off",
        "1f505": "brightness-5", "1f506": "brightness-7", "1f53a": "triangle", "1f53b": "triangle-down", "1f53c": "chevron-up-box",
        "1f53d": "chevron-down-box", "25b6": "play", "23f8": "pause", "23e9": "fast-forward", "23ea": "rewind",
        "23eb": "chevron-double-up", "23ec": "chevron-double-down", "1f697": "car-side", "1f698": "car", "1f68c": "bus-side",
        "1f68d": "bus", "1f415": "dog-side", "1f9ae": "dog-service",
    },
    "phosphor": {
        "1f44d": "thumbs-up-fill", "1f44e": "thumbs-down-fill", "1f512": "lock-simple-fill", "1f513": "lock-simple-open-fill",
        "1f4d5": "book-fill", "1f4d6": "book-open-fill", "1f4c1": "folder-fill", "1f4c2": "folder-open-fill",
        "1f507": "speaker-simple-slash-fill", "1f508": "speaker-simple-none-fill", "1f509": "speaker-simple-low-fill",
        "1f50a": "speaker-simple-high-fill", "1f514": "bell-fill", "1f515": "bell-slash-fill", "1f50b": "battery-vertical-full-fill",
        "1faab": "battery-vertical-low-fill", "231b": "hourglass-low-fill", "23f3": "hourglass-high-fill", "2764": "heart-fill",
        "1f494": "heart-break-fill", "1f4c8": "chart-line-up-fill", "1f4c9": "chart-line-down-fill", "1f6eb": "airplane-takeoff-fill",
        "1f6ec": "airplane-landing-fill", "2601": "cloud-fill", "1f327": "cloud-rain-fill", "1f328": "cloud-snow-fill",
        "1f329": "cloud-lightning-fill", "2600": "sun-fill", "26c5": "cloud-sun-fill", "1f331": "plant-fill", "1fab4": "potted-plant-fill",
        "1f377": "wine-fill", "1f942": "champagne-fill", "1f388": "balloon-fill", "1f389": "confetti-fill",
        "1f4e4": "tray-arrow-up-fill", "1f4e5": "tray-arrow-down-fill", "26d3": "link-bold", "26d3-200d-1f4a5": "link-break-bold",
        "1f505": "sun-dim-fill", "1f506": "sun-fill", "1f53a": "caret-up-fill", "1f53b": "caret-down-fill", "25b6": "play-fill",
        "23f8": "pause-fill", "23e9": "fast-forward-fill", "23ea": "rewind-fill", "23eb": "caret-double-up-fill",
        "23ec": "caret-double-down-fill", "1f697": "car-profile-fill", "1f698": "car-fill", "270a": "hand-fist-fill",
        "270b": "hand-palm-fill", "270c": "hand-peace-fill",
    },
}  # fmt: skip

GESTURES = {
    "material": {
        "1f44d": "thumb-up", "1f44e": "thumb-down", "1f44f": "hand-clap", "1f44c": "hand-okay", "270c": "hand-peace", "1f44b": "hand-wave",
        "1f64f": "hands-pray", "1f91a": "hand-back-right", "270b": "hand-front-right", "1faf4": "hand-extended", "1f91d": "handshake",
        "1f4aa": "arm-flex", "261d": "hand-pointing-up",
    },
    "awesome": {
        "1f44d": "thumbs-up", "1f44e": "thumbs-down", "1f44f": "hands-clapping", "270c": "hand-peace", "1f596": "hand-spock",
        "1f64f": "hands-praying", "270a": "hand-back-fist", "1f44a": "hand-fist", "270b": "hand", "1faf4": "hand-holding",
        "1f932": "hands-holding", "1f595": "hand-middle-finger", "261d": "hand-point-up", "1f91d": "handshake",
    },
    "phosphor": {
        "1f44d": "thumbs-up-fill", "1f44e": "thumbs-down-fill", "1f44f": "hands-clapping-fill", "270c": "hand-peace-fill",
        "270a": "hand-fist-fill", "270b": "hand-palm-fill", "1f44b": "hand-waving-fill", "1f64f": "hands-praying-fill",
        "261d": "hand-pointing-fill", "1f91d": "handshake-fill",
    },
    "mingcute": {
        "1f44d": "thumb-up-fill", "1f44e": "thumb-down-fill", "1f44f": "hands-clapping-fill", "270c": "finger-victory-fill",
        "1f918": "finger-rock-fill", "1faf0": "finger-love-fill", "1f44b": "wave-hand-fill", "1f64f": "pray-fill", "270b": "hand-fill",
        "1f595": "middle-finger-fill", "261d": "hand-finger-fill", "1f442": "ear-fill", "1f443": "nose-fill",
    },
    "tabler": {
        "270b": "hand-stop", "1f91f": "hand-love-you", "1f918": "hand-rock", "1f595": "hand-middle-finger", "261d": "hand-finger",
        "270c": "hand-two-fingers",
    },
    "game_icons": {
        "1f44d": "thumb-up", "1f44e": "thumb-down", "1f44c": "hand-ok", "1faf4": "open-palm", "1f590": "palm", "270a": "fist",
        "1f596": "spock-hand", "1f91d": "shaking-hands", "1f4aa": "biceps", "1f442": "human-ear", "1f443": "nose-side", "1f9b5": "leg",
    },
}  # fmt: skip

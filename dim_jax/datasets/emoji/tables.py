"""Which emoji belong together, written by hand: colours, clocks, directions, accessories, animals, states."""

COLOURS = {
    "heart": {
        "2764": "red", "1f9e1": "orange", "1f49b": "yellow", "1f49a": "green", "1f499": "blue", "1fa75": "light blue", "1f49c": "purple",
        "1f90e": "brown", "1f5a4": "black", "1fa76": "grey", "1f90d": "white", "1fa77": "pink",
    },
    "circle": {
        "1f534": "red", "1f7e0": "orange", "1f7e1": "yellow", "1f7e2": "green", "1f535": "blue", "1f7e3": "purple", "1f7e4": "brown",
        "26ab": "black", "26aa": "white",
    },
    "square": {
        "1f7e5": "red", "1f7e7": "orange", "1f7e8": "yellow", "1f7e9": "green", "1f7e6": "blue", "1f7ea": "purple", "1f7eb": "brown",
        "2b1b": "black", "2b1c": "white",
    },
    "large diamond": {"1f536": "orange", "1f537": "blue"},
    "small diamond": {"1f538": "orange", "1f539": "blue"},
    "book": {"1f4d5": "red", "1f4d7": "green", "1f4d8": "blue", "1f4d9": "orange"},
}  # fmt: skip

CLOCKS = {f"{0x1F550 + hour:x}": f"{hour + 1} o'clock" for hour in range(12)}
CLOCKS |= {f"{0x1F55C + hour:x}": f"half past {hour + 1}" for hour in range(12)}

MOONS = {
    "1f311": "new moon", "1f312": "waxing crescent moon", "1f313": "first quarter moon", "1f314": "waxing gibbous moon",
    "1f315": "full moon", "1f316": "waning gibbous moon", "1f317": "last quarter moon", "1f318": "waning crescent moon",
}  # fmt: skip

ARROWS = {
    "2b06": "up", "2197": "up and to the right", "27a1": "to the right", "2198": "down and to the right", "2b07": "down",
    "2199": "down and to the left", "2b05": "to the left", "2196": "up and to the left",
}  # fmt: skip

# Kinds of people that are drawn facing either side.
FACING = ("1f6b6", "1f9ce", "1f3c3", "1f9d1-1f9af", "1f9d1-1f9bc", "1f9d1-1f9bd")

# Hands that point somewhere, by what they are; every skin tone follows.
HANDS = {
    "index finger": {"1f446": "up", "1f447": "down", "1f448": "to the left", "1f449": "to the right"},
    "fist": {"1f91b": "to the left", "1f91c": "to the right"},
    "open hand": {"1faf2": "to the left", "1faf1": "to the right"},
    "pushing hand": {"1faf7": "to the left", "1faf8": "to the right"},
    "palm": {"1faf3": "down", "1faf4": "up"},
}

ZODIAC = {f"{0x2648 + sign:x}": name for sign, name in enumerate(
    ["Aries", "Taurus", "Gemini", "Cancer", "Leo", "Virgo", "Libra", "Scorpio", "Sagittarius", "Capricorn", "Aquarius", "Pisces"]
)}  # fmt: skip

KEYCAPS = {f"{ord(key):04x}-20e3": key for key in "0123456789#*"} | {"1f51f": "10"}

# Kinds of person with an outfit and tools of their own.
OCCUPATIONS = {
    "1f9d1-2695": "health worker", "1f9d1-1f393": "student", "1f9d1-1f3eb": "teacher", "1f9d1-2696": "judge", "1f9d1-1f33e": "farmer",
    "1f9d1-1f373": "cook", "1f9d1-1f527": "mechanic", "1f9d1-1f3ed": "factory worker", "1f9d1-1f4bc": "office worker",
    "1f9d1-1f52c": "scientist", "1f9d1-1f4bb": "technologist", "1f9d1-1f3a4": "singer", "1f9d1-1f3a8": "artist", "1f9d1-2708": "pilot",
    "1f9d1-1f680": "astronaut", "1f9d1-1f692": "firefighter", "1f46e": "police officer", "1f575": "detective", "1f482": "guard",
    "1f477": "construction worker",
}  # fmt: skip

PLAIN_FACES = ("1f60a", "1f642", "1f600", "263a")
ACCESSORIES = {
    "1f60e": "black sunglasses", "1f913": "round glasses", "1f9d0": "a monocle", "1f920": "a cowboy hat", "1f973": "a party hat and a horn",
    "1f637": "a medical mask", "1f912": "a thermometer", "1f915": "a head bandage", "1f607": "a halo", "1f970": "floating hearts",
    "1f978": "glasses with a false nose and moustache", "1f917": "open hands", "1f929": "stars for eyes",
    "1f60d": "hearts for eyes", "1f911": "money in eyes and mouth", "1f972": "a tear", "1f910": "a zip over the mouth",
}  # fmt: skip

# A face and the cat that makes it.
CATS = {
    "1f600": "1f63a", "1f604": "1f638", "1f602": "1f639", "1f60d": "1f63b", "1f60f": "1f63c", "1f617": "1f63d", "1f629": "1f640",
    "1f622": "1f63f", "1f621": "1f63e",
}  # fmt: skip

# An animal and its face alone.
ANIMALS = {
    "1f412": "1f435", "1f415": "1f436", "1f408": "1f431", "1f405": "1f42f", "1f40e": "1f434", "1f404": "1f42e", "1f416": "1f437",
    "1f401": "1f42d", "1f407": "1f430", "1f409": "1f432",
}  # fmt: skip

# Two states of one thing: there, and back. Where skin tones exist, they follow.
STATES = (
    ("1f44d", "1f44e", "Turn the thumb down.", "Turn the thumb up."),
    ("1f512", "1f513", "Open the lock.", "Close the lock."),
    ("1f304", "1f305", "Let the sun rise over the sea instead of mountains.", "Let the sun rise over mountains instead of the sea."),
    ("1f306", "1f307", "Let the sun set behind the buildings.", "Let dusk fall over the city."),
    ("1f4d5", "1f4d6", "Open the book.", "Close the book and make its cover red."),
    ("1f4c1", "1f4c2", "Open the folder.", "Close the folder."),
    ("1f302", "2602", "Open the umbrella.", "Fold the umbrella."),
    ("2602", "2614", "Let it rain on the umbrella.", "Stop the rain."),
    ("1f4ea", "1f4eb", "Raise the flag of the mailbox.", "Lower the flag of the mailbox."),
    ("1f4ed", "1f4ec", "Raise the flag of the open mailbox, mail inside.", "Lower the flag of the open mailbox, no mail inside."),
    ("1f4ea", "1f4ed", "Open the mailbox.", "Close the mailbox."),
    ("1f507", "1f50a", "Turn the sound on, loud.", "Mute the speaker."),
    ("1f508", "1f50a", "Make the speaker loud.", "Make the speaker quiet."),
    ("1f508", "1f509", "Turn the volume up a little.", "Turn the volume down a little."),
    ("1f514", "1f515", "Strike the bell out with a slash.", "Remove the slash from the bell."),
    ("1f50b", "1faab", "Drain the battery.", "Charge the battery."),
    ("1f50d", "1f50e", "Tilt the magnifying glass to the right.", "Tilt the magnifying glass to the left."),
    ("231b", "23f3", "Let the sand in the hourglass still run.", "Let all sand of the hourglass run down."),
    ("1f339", "1f940", "Let the flower wilt.", "Make the wilted flower a fresh rose."),
    ("2764", "1f494", "Break the heart.", "Make the broken heart whole."),
    ("2764", "2764-200d-1f525", "Set the heart on fire.", "Put out the fire of the heart."),
    ("2764", "2764-200d-1fa79", "Put a bandage on the heart.", "Take the bandage off the heart."),
    ("2764", "1f498", "Shoot an arrow through the heart.", "Remove the arrow from the heart."),
    ("2764", "1f49d", "Tie a ribbon around the heart.", "Take the ribbon off the heart."),
    ("2764", "1f495", "Show two hearts instead of one.", "Show one heart instead of two."),
    ("1f4c8", "1f4c9", "Let the chart fall.", "Let the chart rise."),
    ("1f6eb", "1f6ec", "Let the airplane land.", "Let the airplane take off."),
    ("2601", "1f327", "Let it rain from the cloud.", "Stop the rain and leave the cloud."),
    ("2601", "1f328", "Let it snow from the cloud.", "Stop the snow and leave the cloud."),
    ("2601", "1f329", "Add lightning to the cloud.", "Remove the lightning and leave the cloud."),
    ("1f327", "26c8", "Add lightning to the rain.", "Remove the lightning and keep the rain."),
    ("1f327", "1f328", "Turn the rain into snow.", "Turn the snow into rain."),
    ("2600", "26c5", "Put a cloud in front of the sun.", "Remove the cloud from the sun."),
    ("1f324", "1f325", "Make the cloud before the sun larger.", "Make the cloud before the sun smaller."),
    ("1f326", "1f324", "Stop the rain and let the sun come out.", "Let it rain while the sun shines."),
    ("2600", "1f31e", "Give the sun a face.", "Remove the face of the sun."),
    ("1f315", "1f31d", "Give the full moon a face.", "Remove the face of the full moon."),
    ("1f311", "1f31a", "Give the new moon a face.", "Remove the face of the new moon."),
    ("2b50", "1f31f", "Make the star glow.", "Stop the glow of the star."),
    ("2603", "26c4", "Stop the snow around the snowman.", "Let it snow around the snowman."),
    ("1f331", "1fab4", "Put the seedling into a pot.", "Take the plant out of its pot."),
    ("1fab9", "1faba", "Lay eggs into the nest.", "Take the eggs out of the nest."),
    ("1f333", "1fabe", "Take all leaves off the tree.", "Give the tree green leaves."),
    ("1f95a", "1f373", "Fry the egg in a pan.", "Show the egg raw, in its shell."),
    ("1f37a", "1f37b", "Clink two beer mugs.", "Show one beer mug only."),
    ("1f377", "1f942", "Clink two glasses.", "Show one glass of wine only."),
    ("1f347", "1f377", "Make wine of the grapes.", "Turn the wine back into grapes."),
    ("1f383", "1f480", "Turn the pumpkin into a skull.", "Turn the skull into a carved pumpkin."),
    ("1f648", "1f649", "Let the monkey cover its ears.", "Let the monkey cover its eyes."),
    ("1f648", "1f64a", "Let the monkey cover its mouth.", "Let the monkey cover its eyes and not its mouth."),
    ("1f423", "1f424", "Let the chick leave its shell.", "Put the chick back into its shell."),
    ("1f424", "1f425", "Turn the chick to the front, wings spread.", "Show the chick from the side."),
    ("1f40b", "1f433", "Let the whale spout water.", "Stop the water of the whale."),
    ("1f42a", "1f42b", "Give the camel a second hump.", "Leave the camel one hump."),
    ("1f3e0", "1f3e1", "Add a garden to the house.", "Remove the garden."),
    ("1f3e0", "1f3da", "Let the house fall into ruin.", "Repair the house."),
    ("1f4f7", "1f4f8", "Let the camera flash.", "Turn off the flash of the camera."),
    ("1f4f1", "1f4f2", "Add an arrow that enters the phone.", "Remove the arrow from the phone."),
    ("1f4e7", "2709", "Remove the letter from the envelope.", "Mark the envelope as e-mail."),
    ("2709", "1f4e9", "Add an arrow that enters the envelope.", "Remove the arrow from the envelope."),
    ("1f4e4", "1f4e5", "Let the arrow of the tray point down, into it.", "Let the arrow of the tray point up, out of it."),
    ("26d3", "26d3-200d-1f4a5", "Break the chain.", "Mend the chain."),
    ("1f505", "1f506", "Make the button bright.", "Dim the button."),
    ("1f53a", "1f53b", "Turn the triangle upside down.", "Turn the triangle right way up."),
    ("1f53c", "1f53d", "Let the button point down.", "Let the button point up."),
    ("25b6", "25c0", "Let the button point to the left.", "Let the button point to the right."),
    ("25b6", "23f8", "Change the play button to pause.", "Change the pause button to play."),
    ("23e9", "23ea", "Let the button wind back.", "Let the button wind forward."),
    ("23eb", "23ec", "Let the double arrows point down.", "Let the double arrows point up."),
    ("1f533", "1f532", "Make the button black.", "Make the button white."),
    ("2753", "2754", "Make the question mark white.", "Make the question mark red."),
    ("2757", "2755", "Make the exclamation mark white.", "Make the exclamation mark red."),
    ("2757", "203c", "Double the exclamation mark.", "Show the exclamation mark once."),
    ("1f3f4", "1f3f3", "Make the flag white.", "Make the flag black."),
    ("1f3f3", "1f3f3-200d-1f308", "Colour the flag as a rainbow.", "Make the rainbow flag plain white."),
    ("1f697", "1f698", "Show the car from the front.", "Show the car from the side."),
    ("1f68c", "1f68d", "Show the bus from the front.", "Show the bus from the side."),
    ("1f693", "1f694", "Show the police car from the front.", "Show the police car from the side."),
    ("1f695", "1f696", "Show the taxi from the front.", "Show the taxi from the side."),
    ("1f697", "1f695", "Turn the car into a taxi.", "Turn the taxi into an ordinary car."),
    ("1f6a5", "1f6a6", "Stand the traffic light upright.", "Lay the traffic light on its side."),
    ("1f388", "1f389", "Replace the balloon by a party popper.", "Replace the party popper by a balloon."),
    ("1f947", "1f948", "Make it the silver medal.", "Make it the gold medal."),
    ("1f948", "1f949", "Make it the bronze medal.", "Make the bronze medal a silver one."),
    ("1f34e", "1f34f", "Make the apple green.", "Make the apple red."),
    ("1f34b", "1f34b-200d-1f7e9", "Turn the lemon into a lime.", "Turn the lime into a lemon."),
    ("1f344", "1f344-200d-1f7eb", "Make the mushroom brown.", "Make the mushroom red with white dots."),
    ("1f408", "1f408-200d-2b1b", "Make the cat black.", "Make the black cat an ordinary one."),
    ("1f426", "1f426-200d-2b1b", "Make the bird black.", "Give the black bird its colours."),
    ("1f43b", "1f43b-200d-2744", "Turn the bear into a polar bear.", "Make the polar bear brown."),
    ("1f415", "1f9ae", "Put a guide dog's harness on the dog.", "Take the harness off the dog."),
    ("1f476", "1f47c", "Make the baby an angel with a halo.", "Make the angel an ordinary baby."),
    ("270a", "270b", "Open the fist to a raised hand.", "Close the hand to a fist."),
    ("270b", "1f590", "Spread the fingers.", "Close the gaps between the fingers."),
    ("270b", "270c", "Show a victory sign with two fingers.", "Raise the whole hand."),
    ("270c", "1f91e", "Cross the two fingers.", "Spread the two fingers to a victory sign."),
    ("1f918", "1f91f", "Spread the thumb as well.", "Fold the thumb in."),
    ("270b", "1f596", "Part the fingers in the middle.", "Hold the fingers together."),
    ("1f442", "1f9bb", "Put a hearing aid into the ear.", "Remove the hearing aid."),
)  # fmt: skip

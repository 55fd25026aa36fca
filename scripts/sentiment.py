"""Texts and words of good and bad sentiment: what a vector is made of, and is measured by."""

POSITIVE = (
    "I loved every minute of this film",
    "What a wonderful and moving story",
    "The food was delicious and the staff were kind",
    "This is the best book I have ever read",
    "She was delighted with the beautiful gift",
    "An excellent performance by a brilliant cast",
    "We had a fantastic holiday and a great time",
    "The concert was amazing from start to end",
    "He is a generous friend and a joy to know",
    "The hotel was clean, bright and comfortable",
    "I am so happy with this superb camera",
    "A charming, funny and delightful play",
)
NEGATIVE = (
    "I hated every minute of this film",
    "What a terrible and boring story",
    "The food was disgusting and the staff were rude",
    "This is the worst book I have ever read",
    "She was upset with the ugly gift",
    "An awful performance by a dreadful cast",
    "We had a horrible holiday and a bad time",
    "The concert was painful from start to end",
    "He is a selfish liar and a pain to know",
    "The hotel was dirty, dark and uncomfortable",
    "I am so angry with this useless camera",
    "A dull, tedious and miserable play",
)
"""Each is the contrary of the positive one in its place."""

NEUTRAL = (
    "I watched the film last night and I thought it was",
    "The restaurant on the corner is",
    "In my opinion, the new phone is",
    "Yesterday we went to the concert. It was",
    "When I think about my job, I feel",
    "My neighbour read the book and said it was",
    "The teacher looked at my essay and called it",
    "Our stay at the hotel was",
    "The weather on our trip was",
    "After the meeting, everyone felt",
    "The new album of the band is",
    "If you ask me, the museum is",
    "My sister described her first day at school as",
    "The service at the bank was",
    "The ending of the story was",
    "He tasted the soup and said it was",
    "Looking back, the year was",
    "The play that we saw on Sunday was",
    "She opened the letter, and the news was",
    "The critics wrote that the exhibition was",
    "To be honest, the flight was",
    "Their garden in the spring looks",
    "The coffee at the station is",
    "I asked him about the party, and he said it was",
    "The first chapter of the novel is",
    "Living next to the railway is",
    "What the mayor said yesterday was",
    "The game that my son plays is",
    "Working with the new team has been",
    "The view from the window is",
    "The doctor told us that the results were",
    "Her voice on the recording sounds",
)
"""Each may go on either way."""

GOOD = (" great", " good", " wonderful", " excellent", " amazing", " beautiful", " happy")
BAD = (" terrible", " bad", " awful", " horrible", " boring", " ugly", " sad")
"""Words that are one token in common vocabularies."""

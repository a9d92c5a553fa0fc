"""What benchmarks/speculation.py lets a model say: a transcript, its proper form, and something else."""

SPOKEN = """\
um good morning everybody uh thank you for coming so so early the the plan for today is is simple we \
have uh three things to talk about and i hope that that we can finish before before lunch first of \
all the bridge over the river has been closed since monday um and the engineers say that it will it \
will stay closed for at least uh two more weeks the reason is a crack in one of the the pillars \
which they found uh when they cleaned it that means that the buses have to to go around by the old \
mill and that every trip takes um about twenty minutes longer second the school has asked us uh \
whether the children could be be picked up earlier since the new route leaves leaves the village at \
seven i told them that we would look at it um and give them an answer by friday third and this is \
the the good news the money for the new playground has arrived uh and we can order the swings the \
slide and the the climbing frame this week does anybody have questions so far no then let us let us \
begin with the bridge"""

WRITTEN = """\
Good morning everybody, thank you for coming so early. The plan for today is simple: we have three \
things to talk about, and I hope that we can finish before lunch. First of all, the bridge over the \
river has been closed since Monday, and the engineers say that it will stay closed for at least two \
more weeks. The reason is a crack in one of the pillars, which they found when they cleaned it. That \
means that the buses have to go around by the old mill, and that every trip takes about twenty \
minutes longer. Second, the school has asked us whether the children could be picked up earlier, \
since the new route leaves the village at seven. I told them that we would look at it and give them \
an answer by Friday. Third, and this is the good news, the money for the new playground has arrived, \
and we can order the swings, the slide and the climbing frame this week. Does anybody have questions \
so far? No? Then let us begin with the bridge."""

UNRELATED = """\
Bread needs four ingredients only. Mix flour and water, let them rest for half an hour, then add \
salt and a little yeast and knead until the dough stretches without tearing. Cover it with a cloth. \
After two hours at room temperature it has doubled; fold it gently, shape a loaf and put it in a \
basket dusted with rye. While it rises once more, heat an iron pot in your oven as hot as possible. \
Turn the loaf into this pot, cut its top with a razor blade, close the lid and bake for thirty \
minutes. Remove the lid so that steam escapes, and bake until the crust is dark brown. Resist eating \
it warm: crumb sets while cooling. Whole grain varieties want more liquid, longer fermentation, \
lower temperatures. Store leftovers wrapped in linen, never in plastic, because moisture softens \
crusts and invites mould. Stale slices make excellent soup thickener, croutons or sweet puddings \
with raisins."""

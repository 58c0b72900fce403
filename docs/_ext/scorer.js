// Search finds pages for users first, then the API, then pages for developers.
var Scorer = {
  score: ([page, title, anchor, description, score]) => {
    if (page.startsWith("developer/") || page.startsWith("api/developer") || page === "changelog") return score - 60;
    if (page.startsWith("api/")) return score - 25;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};

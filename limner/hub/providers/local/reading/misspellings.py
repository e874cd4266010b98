"""Common misspellings that stand for one word only: what a dictionary proposes first is often another word that looks like it."""

_LINES = """
abotu about; acceptible acceptable; accomodate accommodate; acheive achieve; acording according; acquaintence acquaintance; adn and;
adress address; agian again; agressive aggressive; ahve have; alcholol alcohol; allready already; allways always; alot a lot;
amatuer amateur; anual annual; apparant apparent; appearence appearance; arguement argument; becasue because; becuase because;
becomeing becoming; begining beginning; beleive believe; belive believe; biger bigger; buisness business; calender calendar;
cemetary cemetery; childern children; colleage colleague; collegue colleague; comming coming; comittee committee;
commitee committee; completly completely; concious conscious; couldnt couldn't; critisism criticism; decison decision;
definately definitely; definitly definitely; dependance dependence; desicion decision; develope develop; didnt didn't;
diffrent different; dilemna dilemma; dissapear disappear; dissapoint disappoint; doesnt doesn't; dont don't; embarass embarrass;
embarassed embarrassed; enviroment environment; excercise exercise; existance existence; experiance experience; finaly finally;
foriegn foreign; fourty forty; foward forward; freind friend; frist first; gaurd guard; goverment government; grammer grammar;
grat great; greatful grateful; hadnt hadn't; happend happened; harrass harass; hasnt hasn't; havent haven't; heigth height; hte the;
humourous humorous; hygeine hygiene; imediately immediately; immediatly immediately; independant independent;
intresting interesting; isnt isn't; ive I've; jsut just; knowlege knowledge; knwo know; lenght length; liase liaise; libary library;
liek like; litle little; maintainance maintenance; medecine medicine; millenium millennium; minature miniature; mispell misspell;
mispelled misspelled; mistery mystery; neccessary necessary; nessesary necessary; nieghbor neighbor; noticable noticeable;
occassion occasion; occured occurred; occuring occurring; occurence occurrence; ocasion occasion; paralel parallel; peice piece;
peopel people; peple people; persistant persistent; plese please; posession possession; possable possible; prefered preferred;
privelege privilege; probaly probably; promiss promise; publically publicly; realy really; recieve receive; recieved received;
recomend recommend; refered referred; relevent relevant; religous religious; remeber remember; resistence resistance; rythm rhythm;
scedule schedule; seige siege; sentance sentence; seperate separate; seperately separately; shouldnt shouldn't; siad said;
similiar similar; sincerly sincerely; somthing something; speach speech; stoped stopped; sucess success; sucessful successful;
suprise surprise; suprised surprised; taht that; teh the; thats that's; thier their; tiem time; tommorow tomorrow; tomorow tomorrow;
tounge tongue; truely truly; tryed tried; unfortunatly unfortunately; untill until; usefull useful; usualy usually; wasnt wasn't;
waht what; wether whether; wich which; whcih which; wierd weird; wiht with; wokr work; wouldnt wouldn't; woudl would;
writen written; writting writing; youre you're; yuo you
"""
MEANT = {wrong: right for wrong, _, right in (line.strip().partition(" ") for line in _LINES.split(";"))}
"""In lower case: for a misspelling the word that was meant."""
